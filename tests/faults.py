"""Every fault that a run is to survive, many times: python tests/faults.py [--only NAME ...] [--out FILE]

Each try is a real process of train.py on a tiny recipe, or a directory that such a process left. Where a run is to go
on it ends equal to one without a fault, bit for bit (with another number of hosts to rounding). The table counts the
tries, those survived, and the training steps that had to be done again, at most one interval; none may be lost.
`test_faults.py` tries each a few times.
"""

import argparse
import contextlib
import io
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
from example_commands import arrays
from example_faults import EVERY, LIMITED, ROOT, STEPS, WITHOUT_PRIVILEGES, Run, fill, flip, several

from ddpm_jax import saved_steps
from ddpm_jax.run_log import read_metrics

WAITS: list[float] = []
"""Seconds from a signal to the end of the process, its step and its save included."""


class Bench(NamedTuple):
    """A folder for one try, the compiled programs, and a run without a fault."""

    folder: Path
    cache: Path
    straight: Path

    @property
    def workdir(self) -> Path:
        return self.folder / "run"

    def run(self, *more: object, launcher: str = "") -> Run:
        return Run(self.workdir, self.cache, *more, launcher=launcher)

    def goes_on(self) -> str:
        """What the same command says when it ends as the straight run did, bit for bit, in arrays and in losses."""
        with self.run() as run:
            assert run.ends() == 0, run.words
        for ours, wanted in zip(arrays(self.workdir, STEPS), arrays(self.straight, STEPS), strict=True):
            np.testing.assert_array_equal(ours, wanted)
        assert losses(self.workdir) == losses(self.straight)
        return run.words

    def half_way(self) -> None:
        """A copy of the straight run as it was at its last checkpoint but one."""
        shutil.copytree(self.straight, self.workdir)
        shutil.rmtree(newest(self.workdir))

    @contextlib.contextmanager
    def small_disk(self) -> Iterator["Bench"]:
        """The same on a file system of 8 MB; SkipTest where this process may mount none."""
        place = self.folder / "disk"
        place.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", place], capture_output=True)
        if mounted.returncode:
            raise unittest.SkipTest(f"no file system may be mounted here: {mounted.stderr.decode().strip()}")
        try:
            yield self._replace(folder=place)
        finally:
            subprocess.run(["umount", "--lazy", place], check=True)


def losses(workdir: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(workdir / "metrics.jsonl")]


def newest(workdir: Path) -> Path:
    return workdir / saved_steps.FOLDER / str(STEPS)


def stopped_cleanly(run: Run, words: str) -> None:
    """It ended with one line of error that says this, and no traceback of any thread."""
    assert run.ends() == 2, run.words
    assert words in run.words
    assert "Traceback" not in run.words, run.words


def killed(bench: Bench, moment: random.Random) -> int:
    """SIGKILL at any moment, saves under way included"""
    with bench.run() as run:
        run.reaches(moment.randrange(1, STEPS - 1))
        time.sleep(moment.random() * 0.05)
        assert run.ends(signal.SIGKILL) == -signal.SIGKILL
    again = run.step - saved_steps.newest(run.workdir)
    assert again <= EVERY
    bench.goes_on()
    return max(again, 0)


def signalled(bench: Bench, moment: random.Random) -> int:
    """SIGTERM or SIGINT at any moment: the step is saved, the exit status is 143 or 130"""
    number = moment.choice([signal.SIGTERM, signal.SIGINT])
    with bench.run() as run:
        run.reaches(moment.randrange(1, STEPS - 4))
        before, began = run.step, time.perf_counter()
        assert run.ends(number) == 128 + number, run.words
        WAITS.append(time.perf_counter() - began)
    step = saved_steps.newest(run.workdir)
    assert f"stopped: step {step} of {STEPS} is saved" in run.words
    assert "Traceback" not in run.words, run.words
    assert before <= step < STEPS
    bench.goes_on()
    return 0


def signalled_twice(bench: Bench, moment: random.Random) -> int:
    """a second signal: the end at once, with its status"""
    with bench.run("--training.steps", 10**6) as run:
        run.reaches(moment.randrange(1, STEPS))
        assert run.ends(signal.SIGTERM, signal.SIGTERM) == 143, run.words
    again = run.step - saved_steps.newest(run.workdir)
    assert again <= EVERY
    shutil.rmtree(run.workdir)
    return max(again, 0)


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
        stopped_cleanly(run, "holds no whole checkpoint: put a copy of one back, or --overwrite the run")
    assert losses(bench.workdir) == losses(bench.straight)
    return 0


def second_run(bench: Bench, moment: random.Random) -> int:
    """a second run in the same directory: it is refused, the first goes on"""
    with bench.run("--training.steps", 10**6) as first:
        first.reaches(moment.randrange(1, STEPS))
        with bench.run() as second:
            stopped_cleanly(second, "error: another run is at work in")
        first.reaches(first.step + 2)
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
        with bench.run("--checkpoint.on-failure", "go_on") as run:
            run.reaches(moment.randrange(EVERY + 1, STEPS - 2 * EVERY))
            ballast = fill(bench.folder)
            run.says("was not saved")
            ballast.unlink()
            status = run.ends()
        assert "Traceback" not in run.words
        assert status == (0 if "done: step" in run.words else 2), run.words  # 2 where the last save failed too
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
    with bench.run("--checkpoint.on-failure", "go_on", launcher=LIMITED % (most, most)) as run:
        stopped_cleanly(run, f"step {STEPS} was not saved")
    bench.goes_on()
    return EVERY


def host_killed(bench: Bench, moment: random.Random) -> int:
    """SIGKILL to one of two hosts: the other ends within 60 s with a message, and one host alone goes on"""
    gone = moment.randrange(2)
    with contextlib.ExitStack() as stack:
        runs = [stack.enter_context(run) for run in several(2, bench.workdir, bench.cache, "--training.steps", 10**6)]
        runs[0].reaches(EVERY + 1)
        runs[gone].ends(signal.SIGKILL)
        assert runs[1 - gone].ends(seconds=60) > 0 or runs[1 - gone].process.returncode == -signal.SIGABRT
    words = runs[1 - gone].words
    assert "another host is gone" in words or "distributed service" in words, words
    again = runs[0].step - saved_steps.newest(bench.workdir)
    assert again <= EVERY
    with bench.run("--training.steps", runs[0].step + STEPS) as run:
        assert run.ends() == 0, run.words
    return max(again, 0)


def host_signalled(bench: Bench, moment: random.Random) -> int:
    """SIGTERM to one of two hosts: both save the same step and end with 143"""
    with contextlib.ExitStack() as stack:
        runs = [stack.enter_context(run) for run in several(2, bench.workdir, bench.cache)]
        runs[0].reaches(moment.randrange(1, STEPS - 6))
        statuses = [runs[1].ends(signal.SIGTERM), runs[0].ends()]
    assert statuses == [143, 143], "\n".join(run.words for run in runs)
    step = saved_steps.newest(bench.workdir)
    assert f"stopped: step {step} of {STEPS} is saved" in runs[0].words
    with bench.run() as run:
        assert run.ends() == 0, run.words
    np.testing.assert_allclose(losses(bench.workdir), losses(bench.straight), rtol=1e-3)
    return 0


class Fault(NamedTuple):
    """What is done, and how often: in test_faults.py (test_hosts.py has those of hosts) and here."""

    what: Callable[[Bench, random.Random], int]
    quick: int
    tries: int


FAULTS = [
    Fault(killed, 1, 50),
    Fault(signalled, 1, 20),
    Fault(signalled_twice, 1, 10),
    Fault(damaged, 12, 200),
    Fault(all_damaged, 1, 5),
    Fault(second_run, 1, 5),
    Fault(full_disk, 1, 5),
    Fault(full_for_a_while, 1, 5),
    Fault(read_only, 1, 5),
    Fault(no_permission, 1, 5),
    Fault(limited, 1, 5),
    Fault(limited_for_good, 1, 5),
    Fault(host_killed, 0, 6),
    Fault(host_signalled, 0, 5),
]
IN_TESTS = {
    "losses and gradients that are not finite": ["test_optimizer.py", "-k", "not_finite"],
    "200 pictures, half of them spoilt: tests over all": ["test_data_fuzz.py"],
    "memory that does not suffice": ["test_memory.py", "-k", "room or fit"],
}
"""Faults within a process, each of which is a test."""


def straight(folder: Path) -> Bench:
    """The compiled programs and a run without a fault, to try faults beside."""
    bench = Bench(folder, folder / "cache", folder / "run")
    with bench.run() as run:
        assert run.ends() == 0, run.words
    return bench


def attempt(fault: Fault, seed: int, bench: Bench) -> tuple[int | None, str]:
    """The steps done again, None for a fault that was not survived, and what went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return fault.what(bench._replace(folder=Path(folder)), random.Random(seed)), ""
        except Exception as error:
            return None, f"{fault.what.__name__} {seed}: {error!r}"


def tested(arguments: list[str]) -> tuple[int, int]:
    """How many tests were run, and how many passed."""
    command = [sys.executable, "-m", "pytest", "-q", *arguments]
    words = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True).stdout
    counts = {kind: int(count) for count, kind in re.findall(r"(\d+) (passed|failed|error)", words)}
    assert counts, f"pytest {' '.join(arguments)} ran no test"
    return sum(counts.values()), counts.get("passed", 0)


def main(only: list[str], out: Path | None) -> None:
    """Prints the table, and writes it."""
    lines = ["| fault | tries | survived | steps done again, at most |", "| --- | --- | --- | --- |"]
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        bench = straight(Path(folder))
        for fault in (fault for fault in FAULTS if not only or fault.what.__name__ in only):
            found = [attempt(fault, seed, bench) for seed in tqdm(range(fault.tries), fault.what.__name__)]
            again = [steps for steps, _ in found if steps is not None]
            failures += [words for _, words in found if words]
            lines.append(f"| {fault.what.__doc__} | {fault.tries} | {len(again)} | {max(again, default=0)} |")
    for what, arguments in ({} if only else IN_TESTS).items():
        tries, passed = tested(arguments)
        failures += [f"{what}: {tries - passed} of {tries} tests failed"] * (passed < tries)
        lines.append(f"| {what} | {tries} | {passed} | 0 |")
    if WAITS:
        lines += ["", f"From a signal to the end of the process: {min(WAITS):.1f} to {max(WAITS):.1f} s."]
    print("\n".join([*lines, *failures]))
    if out is not None:
        out.write_text("\n".join(lines) + "\n")
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], choices=[fault.what.__name__ for fault in FAULTS])
    parser.add_argument("--out", type=Path)
    wanted = parser.parse_args()
    main(wanted.only, wanted.out)
