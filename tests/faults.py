"""Try every fault that a run must survive, many times, and print a table.

    python tests/faults.py [--only NAME ...] [--out FILE]

A try starts real processes of train.py on a tiny recipe, or changes the directory of a finished
run. A resumed run must end with the same arrays and losses as an
uninterrupted one, bit for bit (up to rounding if the number of hosts changes). The table shows the
number of tries, how many the run survived, and the maximum number of training steps that had to be
repeated, which may be at most one checkpoint interval. No step may be lost.
"""

import argparse
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers import faults_of_disks, faults_of_processes
from helpers.bench import Bench, make_bench
from helpers.faults_of_processes import EXIT_SECONDS, KILLED_IN_SAVE
from helpers.processes import EVERY


class Fault(NamedTuple):
    """A fault and how often to try it."""

    cause: Callable[[Bench, random.Random], int]
    """Causes the fault, checks that the run survives it, and returns the repeated steps."""
    tries: int

    @property
    def name(self) -> str:
        return self.cause.__name__

    @property
    def description(self) -> str:
        """The docstring on one line, without its full stop."""
        return " ".join((self.cause.__doc__ or "").split()).removesuffix(".")


FAULTS = [
    Fault(faults_of_processes.killed, 50),
    Fault(faults_of_processes.signalled, 20),
    Fault(faults_of_processes.signalled_twice, 10),
    Fault(faults_of_processes.hung_up, 5),
    Fault(faults_of_disks.corrupt_newest, 200),
    Fault(faults_of_disks.corrupt_all, 5),
    Fault(faults_of_processes.second_run, 5),
    Fault(faults_of_disks.full_disk, 5),
    Fault(faults_of_disks.temporarily_full_disk, 5),
    Fault(faults_of_disks.read_only, 5),
    Fault(faults_of_disks.no_permission, 5),
    Fault(faults_of_disks.file_size_limit, 5),
    Fault(faults_of_disks.lasting_file_size_limit, 5),
    Fault(faults_of_processes.host_killed, 6),
    Fault(faults_of_processes.host_signalled, 5),
]


def attempt(fault: Fault, seed: int, bench: Bench) -> tuple[int | None, str]:
    """Try a fault once. Return the repeated steps, or None if the run failed, and the error."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            repeated = fault.cause(bench._replace(folder=Path(folder)), random.Random(seed))
            assert repeated <= EVERY, f"{repeated} steps were repeated"
            return repeated, ""
        except Exception as error:
            return None, f"{fault.name} {seed}: {error!r}"


def main(only: list[str], out: Path | None) -> None:
    """Try the faults, print the table, and write it to `out` if given."""
    lines = [
        "| fault | tries | survived | maximum of repeated steps |",
        "| --- | --- | --- | --- |",
    ]
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        bench = make_bench(Path(folder))
        for fault in FAULTS:
            if only and fault.name not in only:
                continue
            seeds = tqdm(range(fault.tries), fault.name)
            results = [attempt(fault, seed, bench) for seed in seeds]
            repeated = [steps for steps, _ in results if steps is not None]
            failures += [error for _, error in results if error]
            cells = (fault.description, fault.tries, len(repeated), max(repeated, default=0))
            lines.append(f"| {' | '.join(map(str, cells))} |")
    if KILLED_IN_SAVE and not any(KILLED_IN_SAVE):
        failures.append("killed: no kill fell in a save")
    if EXIT_SECONDS:
        shortest = min(EXIT_SECONDS)
        longest = max(EXIT_SECONDS)
        lines.append("")
        lines.append(
            f"From a signal to the exit of the process: {shortest:.1f} to {longest:.1f} s."
        )
    print("\n".join([*lines, *failures]))
    if out is not None:
        out.write_text("\n".join(lines) + "\n")
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [fault.name for fault in FAULTS]
    parser.add_argument("--only", nargs="*", default=[], choices=names, help="try only these")
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    options = parser.parse_args()
    main(options.only, options.out)
