"""Kill and stop a run in real processes, and resume it.

`make faults` tries these and the other faults, of disks and of second runs, many times.
"""

import random
import signal

import pytest
from helpers import faults_of_processes
from helpers.bench import make_bench


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """The compiled programs and a run without a fault, in which warnings are errors."""
    return make_bench(tmp_path_factory.mktemp("uninterrupted"))


def test_resume_after_a_kill_and_a_stop_matches_an_uninterrupted_run(bench, tmp_path):
    """Three processes do the work of one, bit for bit: SIGKILL, SIGTERM, and the resume."""
    bench = bench._replace(folder=tmp_path)
    rng = random.Random(0)
    done = faults_of_processes.kill(bench, rng.randrange(1, 7), rng)
    faults_of_processes.stop(bench, signal.SIGTERM, done + 1)
    bench.resume()
