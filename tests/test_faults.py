"""Real runs that are stopped, killed, damaged and denied the disk: nothing half-written is used, nothing else lost."""

import os
import random
import shutil
import signal
import time

import numpy as np
import pytest
from example_commands import arrays
from example_faults import EVERY, STEPS, Run, flip

from ddpm_jax import checkpoint
from ddpm_jax.run_log import read_metrics


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Compiled programs, shared by the runs of this file."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def straight(tmp_path_factory, cache):
    """A run without a fault."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    with Run(workdir, cache) as run:
        assert run.ends() == 0, run.words
    return workdir


def goes_on(workdir, cache, straight):
    """The same command again ends as the straight run did, bit for bit."""
    with Run(workdir, cache) as run:
        assert run.ends() == 0, run.words
    assert checkpoint.newest(workdir) == STEPS
    for ours, wanted in zip(arrays(workdir, STEPS), arrays(straight, STEPS), strict=True):
        np.testing.assert_array_equal(ours, wanted)
    assert [line["loss"] for line in read_metrics(workdir / "metrics.jsonl")] == [
        line["loss"] for line in read_metrics(straight / "metrics.jsonl")
    ]
    return run.words


@pytest.mark.parametrize("seed", range(3))
def test_a_kill_at_any_moment_loses_at_most_one_interval(seed, straight, cache, tmp_path):
    moment = random.Random(seed)
    with Run(tmp_path / "run", cache) as run:
        run.reaches(moment.randrange(1, STEPS - 1))
        time.sleep(moment.random() * 0.05)
        assert run.ends(signal.SIGKILL) == -signal.SIGKILL
    assert checkpoint.newest(tmp_path / "run") >= run.step - 2 * EVERY + 1
    goes_on(tmp_path / "run", cache, straight)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_step_and_ends_with_its_status(number, straight, cache, tmp_path):
    with Run(tmp_path / "run", cache) as run:
        run.reaches(4)
        before = run.step
        assert run.ends(number) == 128 + number
    step = checkpoint.newest(tmp_path / "run")
    assert f"stopped: step {step} of {STEPS} is saved" in run.words
    assert "Traceback" not in run.words
    assert before <= step < STEPS
    goes_on(tmp_path / "run", cache, straight)


def test_a_second_run_in_the_same_place_is_refused(cache, tmp_path):
    with Run(tmp_path / "run", cache, "--training.steps", 10**6) as first:
        first.reaches(1)
        with Run(tmp_path / "run", tmp_path / "cache") as second:
            assert second.ends() == 2
            assert "error: another run is at work in" in second.words
        first.reaches(first.step + 2)


HARM = {
    "bit": flip,
    "cut": lambda path, moment: os.truncate(path, moment.randrange(path.stat().st_size)),
    "emptied": lambda path, _: os.truncate(path, 0),
    "missing": lambda path, _: path.unlink(),
    "folder emptied": lambda path, _: [shutil.rmtree(path.parent), path.parent.mkdir()],
}


@pytest.mark.parametrize("kind", HARM)
def test_damage_is_found_and_the_run_goes_on_from_the_step_before(kind, straight, tmp_path, capsys):
    shutil.copytree(straight, tmp_path / "run")
    moment = random.Random(kind)
    folder = tmp_path / "run" / checkpoint.FOLDER / str(STEPS)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    for name in moment.sample(files, min(10, len(files))):
        shutil.copytree(folder, tmp_path / "kept")
        HARM[kind](name, moment)
        assert checkpoint.newest(tmp_path / "run") == STEPS - EVERY, name
        assert f"{checkpoint.FOLDER}/{STEPS} is damaged and left out: " in capsys.readouterr().err
        shutil.rmtree(folder)
        (tmp_path / "kept").rename(folder)
        assert checkpoint.newest(tmp_path / "run") == STEPS


def test_a_run_goes_on_before_what_is_damaged(straight, cache, tmp_path):
    shutil.copytree(straight, tmp_path / "run")
    folder = tmp_path / "run" / checkpoint.FOLDER / str(STEPS)
    flip(folder / "config" / "metadata", random.Random(0))
    words = goes_on(tmp_path / "run", cache, straight)
    assert f"{checkpoint.FOLDER}/{STEPS} is damaged and left out: " in words
    assert f"{EVERY} steps from {STEPS - EVERY} to {STEPS}" in words


def stopped_cleanly(run, words):
    """It ended with one line of error that says this, and whole checkpoints."""
    assert run.ends() == 2, run.words
    assert words in run.words
    assert "Traceback" not in run.words


@pytest.fixture
def half_way(straight, tmp_path):
    """A copy of the run as it was at its last checkpoint but one."""
    shutil.copytree(straight, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / checkpoint.FOLDER / str(STEPS))
    return tmp_path / "run"


WITHOUT_PRIVILEGES = """
import ctypes, os, sys
for capability in (1, 2, 3) if os.getuid() == 0 else ():  # DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER: root writes by these
    assert ctypes.CDLL(None).prctl(24, capability, 0, 0, 0) == 0  # PR_CAPBSET_DROP
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def test_a_folder_that_may_not_be_written(half_way, straight, cache):
    folder = half_way / checkpoint.FOLDER
    folder.chmod(0o555)
    try:
        with Run(half_way, cache, launcher=WITHOUT_PRIVILEGES) as run:
            stopped_cleanly(run, "was not saved")
    finally:
        folder.chmod(0o755)
    assert checkpoint.newest(half_way) == STEPS - EVERY
    goes_on(half_way, cache, straight)
