"""Faults of disks: files that are not as they were written, and none that may be written."""

import contextlib
import io
import os
import random
import re
import shutil
import subprocess
from pathlib import Path

from helpers.bench import Bench, losses, newest, stopped_cleanly
from helpers.processes import EVERY, LIMITED, STEPS, WITHOUT_PRIVILEGES, fill, flip

from ddpm_jax.runs import steps as saved_steps


def another_shape(path: Path, moment: random.Random) -> None:
    """Doubles the first number of what says how an array looks, or of any other text; of other files the length."""
    content = path.read_bytes()
    changed = re.sub(rb"[1-9]\d*", lambda found: str(2 * int(found[0])).encode(), content, count=1)
    path.write_bytes(changed if changed != content else content * 2)


HARM = {
    "a flipped bit": flip,
    "a cut": lambda path, moment: os.truncate(path, moment.randrange(path.stat().st_size)),
    "an empty file": lambda path, _: os.truncate(path, 0),
    "a missing file": lambda path, _: path.unlink(),
    "an empty folder": lambda path, _: [shutil.rmtree(path.parent), path.parent.mkdir()],
    "another shape": another_shape,
}


def damaged(bench: Bench, moment: random.Random) -> int:
    """a flipped bit, a cut, an empty or missing file or folder, another shape in the newest checkpoint"""
    shutil.copytree(bench.straight, bench.workdir)
    folder, kind = newest(bench.workdir), moment.choice(list(HARM))
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    HARM[kind](moment.choice(files), moment)
    said = f"{saved_steps.FOLDER}/{STEPS} is damaged and left out: "
    with contextlib.redirect_stderr(io.StringIO()) as words:
        assert saved_steps.newest(bench.workdir) == STEPS - EVERY, kind
    assert said in words.getvalue()
    if moment.random() < 0.1:  # it costs a run
        again = bench.goes_on()
        assert said in again
        assert f"{EVERY} steps from {STEPS - EVERY} to {STEPS}" in again
    return EVERY


def all_damaged(bench: Bench, moment: random.Random) -> int:
    """damage in every checkpoint: it stops, and never starts afresh"""
    shutil.copytree(bench.straight, bench.workdir)
    for step in saved_steps.steps(bench.workdir):
        flip(bench.workdir / saved_steps.FOLDER / str(step) / "config" / "metadata", moment)
    with bench.run() as run:
        stopped_cleanly(
            run, "holds no whole checkpoint: put a copy of one back, or --overwrite the run"
        )
    assert losses(bench.workdir) == losses(bench.straight)
    return 0


def full_disk(bench: Bench, moment: random.Random) -> int:
    """a full disk: it stops in one line"""
    with bench.small_disk() as bench, bench.run() as run:
        run.reaches(moment.randrange(EVERY + 1, STEPS - 2 * EVERY))
        ballast = fill(bench.folder)
        stopped_cleanly(run, "was not saved")
        ballast.unlink()
        again = run.step - saved_steps.newest(bench.workdir)
        bench.goes_on()
    return max(again, 0)


def full_for_a_while(bench: Bench, moment: random.Random) -> int:
    """a full disk, told to go on: it does, and saves when there is room"""
    with bench.small_disk() as bench:
        with bench.run("--checkpoint.on-failure", "continue") as run:
            run.reaches(moment.randrange(EVERY + 1, STEPS - 2 * EVERY))
            ballast = fill(bench.folder)
            run.says("was not saved")
            ballast.unlink()
            status = run.ends()
        assert "Traceback" not in run.words
        assert status == (0 if "done: step" in run.words else 2), (
            run.words
        )  # 2 where the last save failed too
        again = STEPS - saved_steps.newest(bench.workdir)
        bench.goes_on()
    return again


def read_only(bench: Bench, moment: random.Random) -> int:
    """a disk that may only be read: it stops in one line"""
    bench.half_way()
    with bench.small_disk() as disk:
        shutil.copytree(bench.workdir, disk.workdir)
        subprocess.run(["mount", "-o", "remount,ro", disk.folder], check=True)
        with disk.run() as run:
            stopped_cleanly(run, "Read-only file system")
        subprocess.run(["mount", "-o", "remount,rw", disk.folder], check=True)
        disk.goes_on()
    return 0


def no_permission(bench: Bench, moment: random.Random) -> int:
    """checkpoints that may not be written to, without root's privileges: it stops in one line"""
    bench.half_way()
    folder = bench.workdir / saved_steps.FOLDER
    folder.chmod(0o555)
    try:
        with bench.run(launcher=WITHOUT_PRIVILEGES) as run:
            stopped_cleanly(run, "was not saved")
    finally:
        folder.chmod(0o755)
    assert saved_steps.newest(bench.workdir) == STEPS - EVERY
    bench.goes_on()
    return EVERY


def limited(bench: Bench, moment: random.Random) -> int:
    """a limit on the size of files (RLIMIT_FSIZE): it stops in one line"""
    bench.half_way()
    most = moment.randrange(3_000, 60_000)
    with bench.run(launcher=LIMITED % (most, most)) as run:
        stopped_cleanly(run, "was not saved")
    assert saved_steps.newest(bench.workdir) == STEPS - EVERY
    bench.goes_on()
    return EVERY


def limited_for_good(bench: Bench, moment: random.Random) -> int:
    """the same, told to go on: only the last save, which fails too, ends it"""
    bench.half_way()
    most = moment.randrange(3_000, 60_000)
    with bench.run("--checkpoint.on-failure", "continue", launcher=LIMITED % (most, most)) as run:
        stopped_cleanly(run, f"step {STEPS} was not saved")
    bench.goes_on()
    return EVERY
