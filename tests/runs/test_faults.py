"""Real processes: a run that is killed, and one that is asked to stop, end as one without a fault.

`make faults` tries these and the faults of disks and of second runs many times.
"""

import random
import signal

import pytest
from helpers import faults_of_processes
from helpers.bench import straight


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """The compiled programs and a run without a fault, in which a warning is an error."""
    return straight(tmp_path_factory.mktemp("straight"))


def test_resume_after_sigkill_and_sigterm_matches_an_uninterrupted_run(bench, tmp_path):
    """Bit for bit: three processes do the work of one."""
    bench = bench._replace(folder=tmp_path)
    moment = random.Random(0)
    done = faults_of_processes.kill(bench, moment.randrange(1, 7), moment)
    faults_of_processes.stop(bench, signal.SIGTERM, done + 1)
    bench.goes_on()
