"""Real runs that are stopped, killed, damaged and denied the disk: nothing half-written is used, nothing else lost."""

import random

import faults
import pytest
from helpers.bench import straight


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """The compiled programs and a run without a fault."""
    return straight(tmp_path_factory.mktemp("straight"))


TRIES = [(fault.what, seed) for fault in faults.FAULTS for seed in range(fault.quick)]


@pytest.mark.parametrize(("fault", "seed"), TRIES, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_run_survives(fault, seed, bench, tmp_path):
    fault(bench._replace(folder=tmp_path), random.Random(seed))
