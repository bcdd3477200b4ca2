"""Every fault that a run is to survive, many times: python tests/faults.py [--only NAME ...] [--out FILE]

Each try is a real process of train.py on a tiny recipe, or a real directory that such a process left, and ends in a
run that is equal to one without a fault, bit for bit, or in one line that says why it stopped. The table counts the
tries, those survived, and the training steps that had to be done again (at most one interval and what was done while
the last save was under way) or were lost (none may be).
"""

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
from example_commands import arrays  # noqa: E402
from example_faults import EVERY, STEPS, Run, flip  # noqa: E402

from ddpm_jax import checkpoint  # noqa: E402


class Bench(NamedTuple):
    """A folder for one try, the compiled programs, and a run without a fault."""

    folder: Path
    cache: Path
    straight: Path

    def run(self) -> Run:
        return Run(self.folder / "run", self.cache)

    def goes_on(self) -> None:
        """The same command again ends as the straight run did, bit for bit."""
        with self.run() as run:
            assert run.ends() == 0, run.words
        for ours, wanted in zip(arrays(run.workdir, STEPS), arrays(self.straight, STEPS), strict=True):
            np.testing.assert_array_equal(ours, wanted)


def killed(bench: Bench, moment: random.Random) -> int:
    """SIGKILL at any moment, saves under way included."""
    with bench.run() as run:
        run.reaches(moment.randrange(1, STEPS - 1))
        time.sleep(moment.random() * 0.05)
        run.ends(signal.SIGKILL)
    again = run.step - checkpoint.newest(run.workdir)
    assert again < 2 * EVERY
    bench.goes_on()
    return max(again, 0)


def signalled(bench: Bench, moment: random.Random) -> int:
    """SIGTERM or SIGINT: the step is saved, the exit status is 143 or 130."""
    number = moment.choice([signal.SIGTERM, signal.SIGINT])
    with bench.run() as run:
        run.reaches(moment.randrange(1, STEPS - 2))
        began = time.perf_counter()
        assert run.ends(number) == 128 + number, run.words
        assert time.perf_counter() - began < 10
    again = run.step - checkpoint.newest(run.workdir)
    assert again <= 0
    bench.goes_on()
    return 0


def damaged(bench: Bench, moment: random.Random) -> int:
    """A flipped bit, a cut, an empty or a missing file in the newest checkpoint."""
    shutil.copytree(bench.straight, bench.folder / "run")
    folder = bench.folder / "run" / checkpoint.FOLDER / str(STEPS)
    path = moment.choice(sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size))
    harm = moment.choice([flip, lambda path, _: path.unlink(), lambda path, _: path.write_bytes(b"")])
    harm(path, moment)
    assert checkpoint.newest(bench.folder / "run") == STEPS - EVERY, path
    return EVERY


class Fault(NamedTuple):
    """What is done, and how often."""

    what: Callable[[Bench, random.Random], int]
    tries: int


FAULTS = [Fault(killed, 50), Fault(signalled, 20), Fault(damaged, 200)]


def attempt(fault: Fault, seed: int, cache: Path, straight: Path) -> tuple[int | None, str]:
    """The steps done again, None for a fault that was not survived, and what went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return fault.what(Bench(Path(folder), cache, straight), random.Random(seed)), ""
        except Exception as error:
            return None, f"{fault.what.__name__} {seed}: {error!r}"


def main(only: list[str], out: Path | None) -> None:
    """Prints the table, and writes it."""
    lines = ["| fault | tries | survived | steps done again, at most |", "| --- | --- | --- | --- |"]
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        cache, straight = Path(folder, "cache"), Path(folder, "straight")
        with Run(straight, cache) as run:
            assert run.ends() == 0, run.words
        for fault in (fault for fault in FAULTS if not only or fault.what.__name__ in only):
            seeds = tqdm(range(fault.tries), fault.what.__name__)
            found = [attempt(fault, seed, cache, straight) for seed in seeds]
            again = [steps for steps, _ in found if steps is not None]
            failures += [words for _, words in found if words]
            what = (fault.what.__doc__ or "").rstrip(".")
            lines.append(f"| {what} | {fault.tries} | {len(again)} | {max(again, default=0)} |")
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
