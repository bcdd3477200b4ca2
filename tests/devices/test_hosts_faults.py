"""Several hosts, each a real process, in longer runs: only `make faults` runs these."""

import contextlib
import shutil

import numpy as np
import pytest
from helpers.bench import losses, straight
from helpers.hosts import assert_close, by_sgd
from helpers.processes import STEPS, Run, several, slurm

from ddpm_jax.runs import steps as saved_steps

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """The compiled programs and a run on one host."""
    return straight(tmp_path_factory.mktemp("straight"))


@contextlib.contextmanager
def running(count, bench, workdir, *more):
    """The processes of a run on several hosts."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(run) for run in several(count, workdir, bench.cache, *more)]


def all_end(runs, status=0):
    ends = [run.ends() for run in runs]
    assert ends == [status] * len(runs), "\n".join(run.words for run in runs)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Arrays and losses after twenty steps of SGD on one host."""
    return by_sgd(tmp_path_factory.mktemp("one") / "run")


def test_four_hosts_train_as_one(one, tmp_path):
    assert_close(by_sgd(tmp_path / "four", hosts=4), one)


def test_a_run_resumes_on_other_hosts_and_devices(one, tmp_path):
    by_sgd(tmp_path / "run", devices=8, steps=10)
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    assert_close(by_sgd(tmp_path / "run", devices=1), one)
    assert_close(by_sgd(tmp_path / "again", hosts=2, devices=2), one)


def test_a_state_split_over_hosts_draws_samples_and_resumes(one, tmp_path):
    folder = tmp_path / "run"
    by_sgd(folder, hosts=2, devices=2, fsdp=4, steps=10)
    assert saved_steps.steps(folder, saved_steps.SNAPSHOTS) == [10]
    assert (folder / "samples" / "00000010.png").exists()
    assert_close(by_sgd(folder), one)


def test_hosts_roll_back_together_when_the_parameters_are_nan(tmp_path):
    """They are NaN after step 8, which is saved. The next three are skipped, known a step later."""
    two, one = by_sgd(tmp_path / "two", hosts=2, spoilt=8), by_sgd(tmp_path / "one", spoilt=8)
    assert [step for step, loss in enumerate(two[1], 1) if loss is None] == [9, 10, 11, 12]
    assert (tmp_path / "two" / "checkpoints" / "8-1.abandoned").is_dir()
    assert all(np.isfinite(array).all() for array in two[0])
    assert_close(two, one)


def test_train_on_two_hosts_and_resume_on_one(bench, tmp_path):
    """One log, one set of checkpoints. By Adam, so that losses are compared, not parameters."""
    workdir = tmp_path / "run"
    with running(2, bench, workdir, "--training.steps", STEPS // 2) as runs:
        all_end(runs)
    assert "2 hosts with 1 x cpu" in runs[0].words
    assert f"done: step {STEPS // 2}" in runs[0].words
    assert "done" not in runs[1].words
    assert saved_steps.newest(workdir) == STEPS // 2
    assert len(list((workdir / "tensorboard").iterdir())) == 1
    with Run(workdir, bench.cache) as run:
        assert run.ends() == 0, run.words
    np.testing.assert_allclose(losses(workdir), losses(bench.straight), rtol=1e-3)
    with running(2, bench, workdir, "--overwrite", "--training.steps", 2) as runs:
        all_end(runs)
    assert saved_steps.steps(workdir) == [2]
    np.testing.assert_allclose(losses(workdir), losses(bench.straight)[:2], rtol=1e-3)


def test_a_mistake_ends_all_hosts(bench, tmp_path):
    with running(2, bench, tmp_path / "run", "--training.batch-size", 6) as runs:
        assert runs[0].ends() == 2, runs[0].words
        assert runs[1].ends() != 0, runs[1].words
    assert "a batch of 3 does not divide over 2 devices" in runs[0].words


def test_slurm_says_who_is_who(bench, tmp_path):
    with contextlib.ExitStack() as stack:
        started = slurm(2, tmp_path / "run", bench.cache, "--dry-run")
        runs = [stack.enter_context(run) for run in started]
        all_end(runs)
    assert "2 hosts with 1 x cpu" in runs[0].words
    assert "2 hosts" not in runs[1].words
