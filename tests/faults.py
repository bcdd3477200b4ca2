"""Every fault that a run is to survive, many times: python tests/faults.py [--only NAME ...] [--out FILE]

Each try is a real process of train.py on a tiny recipe, or a directory that such a process left. Where a run is to go
on it ends equal to one without a fault, bit for bit (with another number of hosts to rounding). The table counts the
tries, those survived, and the training steps that had to be done again, at most one interval; none may be lost.
`tests/runs/test_faults.py` does the first two once.
"""

import argparse
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers import faults_of_disks, faults_of_processes
from helpers.bench import Bench, straight
from helpers.faults_of_processes import WAITS
from helpers.processes import ROOT


class Fault(NamedTuple):
    """What is done, and how often."""

    what: Callable[[Bench, random.Random], int]
    tries: int


FAULTS = [
    Fault(faults_of_processes.killed, 50),
    Fault(faults_of_processes.signalled, 20),
    Fault(faults_of_processes.signalled_twice, 10),
    Fault(faults_of_disks.damaged, 200),
    Fault(faults_of_disks.all_damaged, 5),
    Fault(faults_of_processes.second_run, 5),
    Fault(faults_of_disks.full_disk, 5),
    Fault(faults_of_disks.full_for_a_while, 5),
    Fault(faults_of_disks.read_only, 5),
    Fault(faults_of_disks.no_permission, 5),
    Fault(faults_of_disks.limited, 5),
    Fault(faults_of_disks.limited_for_good, 5),
    Fault(faults_of_processes.host_killed, 6),
    Fault(faults_of_processes.host_signalled, 5),
]
IN_TESTS = {
    "losses and gradients that are not finite": ["training/test_optimizer.py"],
    "weights that give no finite loss: back to a checkpoint before": [
        *("runs/test_loop.py", "runs/test_go_back.py", "devices/test_hosts.py"),
        *("-k", "back or lost or further"),
    ],
    "200 pictures, half of them spoilt: tests over all": ["data/test_fuzz.py"],
    "memory that does not suffice": ["devices/test_memory.py", "-k", "memory or fit"],
    "several hosts: resumed, rolled back": ["devices/test_hosts_faults.py", "-m", "faults"],
}
"""Faults within a process, each of which is a test."""


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
    lines = [
        "| fault | tries | survived | steps done again, at most |",
        "| --- | --- | --- | --- |",
    ]
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        bench = straight(Path(folder))
        for fault in (fault for fault in FAULTS if not only or fault.what.__name__ in only):
            found = [
                attempt(fault, seed, bench)
                for seed in tqdm(range(fault.tries), fault.what.__name__)
            ]
            again = [steps for steps, _ in found if steps is not None]
            failures += [words for _, words in found if words]
            lines.append(
                f"| {fault.what.__doc__} | {fault.tries} | {len(again)} | {max(again, default=0)} |"
            )
    for what, arguments in ({} if only else IN_TESTS).items():
        tries, passed = tested(arguments)
        failures += [f"{what}: {tries - passed} of {tries} tests failed"] * (passed < tries)
        lines.append(f"| {what} | {tries} | {passed} | |")
    if WAITS:
        lines += [
            "",
            f"From a signal to the end of the process: {min(WAITS):.1f} to {max(WAITS):.1f} s.",
        ]
    print("\n".join([*lines, *failures]))
    if out is not None:
        out.write_text("\n".join(lines) + "\n")
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="*", default=[], choices=[fault.what.__name__ for fault in FAULTS]
    )
    parser.add_argument("--out", type=Path)
    wanted = parser.parse_args()
    main(wanted.only, wanted.out)
