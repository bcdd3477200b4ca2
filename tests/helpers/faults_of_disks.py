"""Faults of disks: files that changed after they were written, and disks that cannot be written.

The docstring of each fault is its row in the table of `tests/faults.py`. Each returns the number of
training steps that the run had to repeat.
"""

import contextlib
import io
import os
import random
import re
import shutil
import signal
import subprocess
from pathlib import Path

from helpers.bench import Bench, assert_clean_stop, losses, newest
from helpers.processes import (
    DROP_PRIVILEGES,
    EVERY,
    LIMIT_FILE_SIZE,
    STEPS,
    fill_disk,
    flip_bit,
)

from ddpm_jax.runs import saved_steps


def double_first_number(path: Path, rng: random.Random) -> None:
    """Double the first number of a file, which in array metadata is a shape.

    A file without a number is doubled in length.
    """
    content = path.read_bytes()
    doubled = re.sub(rb"[1-9]\d*", lambda match: str(2 * int(match[0])).encode(), content, count=1)
    path.write_bytes(doubled if doubled != content else content * 2)


HARM = {
    "a flipped bit": flip_bit,
    "a truncated file": lambda path, rng: os.truncate(path, rng.randrange(path.stat().st_size)),
    "an empty file": lambda path, _: os.truncate(path, 0),
    "a missing file": lambda path, _: path.unlink(),
    "an empty folder": lambda path, _: [shutil.rmtree(path.parent), path.parent.mkdir()],
    "another shape": double_first_number,
}


def corrupt_newest(bench: Bench, rng: random.Random) -> int:
    """A flipped bit, a truncated, empty or missing file, an empty folder or another shape in the
    newest checkpoint: the run resumes from the previous one.
    """
    shutil.copytree(bench.uninterrupted, bench.workdir)
    folder = newest(bench.workdir)
    kind = rng.choice(list(HARM))
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    HARM[kind](rng.choice(files), rng)
    warning = f"{saved_steps.FOLDER}/{STEPS}, which is corrupt: "
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        assert saved_steps.newest(bench.workdir) == STEPS - EVERY, kind
    assert warning in stderr.getvalue()
    # A real run takes seconds, so only one try in ten does it.
    if rng.random() < 0.1:
        output = bench.resume()
        assert warning in output
        assert f"{EVERY} steps from {STEPS - EVERY} to {STEPS}" in output
    return EVERY


def corrupt_all(bench: Bench, rng: random.Random) -> int:
    """Corruption in every checkpoint: the run stops and never starts afresh."""
    shutil.copytree(bench.uninterrupted, bench.workdir)
    for step in saved_steps.steps(bench.workdir):
        flip_bit(bench.workdir / saved_steps.FOLDER / str(step) / "config" / "metadata", rng)
    with bench.run() as run:
        assert_clean_stop(run, "are corrupt: restore a backup of one")
    assert losses(bench.workdir) == losses(bench.uninterrupted)
    return 0


def full_disk(bench: Bench, rng: random.Random) -> int:
    """Full disk: the run stops with a one-line error."""
    with bench.small_disk() as bench, bench.run() as run:
        run.wait_for_step(rng.randrange(EVERY + 1, STEPS - 2 * EVERY))
        ballast = fill_disk(bench.folder)
        assert_clean_stop(run, "was not saved")
        ballast.unlink()
        repeated = run.step - saved_steps.newest(bench.workdir)
        bench.resume()
    return max(repeated, 0)


def temporarily_full_disk(bench: Bench, rng: random.Random) -> int:
    """Full disk with --checkpoint.on-failure continue: the run saves again once there is room."""
    with bench.small_disk() as bench:
        with bench.run("--checkpoint.on-failure", "continue") as run:
            run.wait_for_step(rng.randrange(EVERY + 1, STEPS - 2 * EVERY))
            ballast = fill_disk(bench.folder)
            run.wait_for_output("was not saved")
            # So that there is room before the last save, which must not fail.
            run.process.send_signal(signal.SIGSTOP)
            ballast.unlink()
            run.process.send_signal(signal.SIGCONT)
            assert run.exit_status() == 0, run.output
        assert "Traceback" not in run.output
        assert saved_steps.newest(bench.workdir) == STEPS
        bench.resume()
    return 0


def read_only(bench: Bench, rng: random.Random) -> int:
    """Read-only disk: the run stops with a one-line error."""
    bench.copy_without_newest()
    with bench.small_disk() as disk:
        shutil.copytree(bench.workdir, disk.workdir)
        subprocess.run(["mount", "-o", "remount,ro", disk.folder], check=True)
        with disk.run() as run:
            assert_clean_stop(run, "Read-only file system")
        subprocess.run(["mount", "-o", "remount,rw", disk.folder], check=True)
        disk.resume()
    return 0


def no_permission(bench: Bench, rng: random.Random) -> int:
    """No write permission for the checkpoint folder (not run as root): the run stops with a
    one-line error.
    """
    bench.copy_without_newest()
    folder = bench.workdir / saved_steps.FOLDER
    folder.chmod(0o555)
    try:
        with bench.run(launcher=DROP_PRIVILEGES) as run:
            assert_clean_stop(run, "was not saved")
    finally:
        folder.chmod(0o755)
    assert saved_steps.newest(bench.workdir) == STEPS - EVERY
    bench.resume()
    return EVERY


def limit_below_largest_file(bench: Bench, rng: random.Random) -> int:
    """A number of bytes that at least one file of a checkpoint exceeds."""
    files = newest(bench.uninterrupted).rglob("*")
    largest = max(path.stat().st_size for path in files if path.is_file())
    return rng.randrange(3_000, largest // 2)


def file_size_limit(bench: Bench, rng: random.Random) -> int:
    """Limit on the size of files (RLIMIT_FSIZE): the run stops with a one-line error."""
    bench.copy_without_newest()
    limit = limit_below_largest_file(bench, rng)
    with bench.run(launcher=LIMIT_FILE_SIZE % (limit, limit)) as run:
        assert_clean_stop(run, "was not saved")
    assert saved_steps.newest(bench.workdir) == STEPS - EVERY
    bench.resume()
    return EVERY


def lasting_file_size_limit(bench: Bench, rng: random.Random) -> int:
    """The same limit with --checkpoint.on-failure continue: only a failure of the last save ends
    the run.
    """
    bench.copy_without_newest()
    limit = limit_below_largest_file(bench, rng)
    launcher = LIMIT_FILE_SIZE % (limit, limit)
    options = ("--checkpoint.on-failure", "continue", "--checkpoint.every", EVERY // 2)
    with bench.run(*options, launcher=launcher) as run:
        assert_clean_stop(run, f"Step {STEPS} was not saved")
    assert f"Step {STEPS - EVERY // 2} was not saved" in run.output, run.output
    bench.resume()
    return EVERY
