"""Longer runs on several hosts, each a real process. Only `make faults` runs these."""

import contextlib
import shutil

import numpy as np
import pytest
from helpers.bench import assert_starts_at, losses, make_bench
from helpers.hosts import assert_close, train_by_sgd
from helpers.processes import STEPS, Run, run_on_hosts, run_under_slurm

from ddpm_jax.runs import saved_steps

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """The compiled programs, and an uninterrupted run on one host."""
    return make_bench(tmp_path_factory.mktemp("uninterrupted"))


@contextlib.contextmanager
def running(num_hosts, bench, workdir, *arguments):
    """The processes of a run on several hosts."""
    with contextlib.ExitStack() as stack:
        started = run_on_hosts(num_hosts, workdir, bench.cache, *arguments)
        yield [stack.enter_context(run) for run in started]


def assert_all_exit_with_0(runs):
    statuses = [run.exit_status() for run in runs]
    assert statuses == [0] * len(runs), "\n".join(run.output for run in runs)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Arrays and losses after twenty steps of SGD on one host."""
    return train_by_sgd(tmp_path_factory.mktemp("one") / "run")


def test_four_hosts_train_as_one(one, tmp_path):
    assert_close(train_by_sgd(tmp_path / "four", num_hosts=4), one)


def test_a_run_resumes_on_other_hosts_and_devices(one, tmp_path):
    train_by_sgd(tmp_path / "run", num_devices=8, steps=10)
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    assert_close(train_by_sgd(tmp_path / "run", num_devices=1), one)
    assert_close(train_by_sgd(tmp_path / "again", num_hosts=2, num_devices=2), one)


def test_a_state_sharded_over_hosts_draws_samples_and_resumes(one, tmp_path):
    folder = tmp_path / "run"
    train_by_sgd(folder, num_hosts=2, num_devices=2, fsdp=4, steps=10)
    assert saved_steps.steps(folder, saved_steps.SNAPSHOTS) == [10]
    assert (folder / "samples" / "00000010.png").exists()
    assert_close(train_by_sgd(folder), one)


def test_hosts_roll_back_together_when_the_parameters_are_nan(tmp_path):
    """They are NaN after step 8, which is saved. The next three updates are skipped, seen late."""
    two = train_by_sgd(tmp_path / "two", num_hosts=2, nan_step=8)
    one = train_by_sgd(tmp_path / "one", nan_step=8)
    assert [step for step, loss in enumerate(two[1], 1) if loss is None] == [9, 10, 11, 12]
    assert (tmp_path / "two" / "checkpoints" / "8-1.abandoned").is_dir()
    assert all(np.isfinite(array).all() for array in two[0])
    assert_close(two, one)


def test_two_hosts_write_one_log_and_one_host_resumes(bench, tmp_path):
    """The optimizer is Adam, so that losses are compared and not parameters."""
    workdir = tmp_path / "run"
    with running(2, bench, workdir, "--training.steps", STEPS // 2) as runs:
        assert_all_exit_with_0(runs)
    assert "2 hosts with 1 x cpu" in runs[0].output
    assert f"done: step {STEPS // 2}" in runs[0].output
    assert "done" not in runs[1].output
    assert saved_steps.newest(workdir) == STEPS // 2
    assert len(list((workdir / "tensorboard").iterdir())) == 1
    with Run(workdir, bench.cache) as run:
        assert run.exit_status() == 0, run.output
    assert_starts_at(run, STEPS // 2, STEPS)
    np.testing.assert_allclose(losses(workdir), losses(bench.uninterrupted), rtol=1e-3)
    with running(2, bench, workdir, "--overwrite", "--training.steps", 2) as runs:
        assert_all_exit_with_0(runs)
    assert saved_steps.steps(workdir) == [2]
    np.testing.assert_allclose(losses(workdir), losses(bench.uninterrupted)[:2], rtol=1e-3)


def test_a_mistake_of_the_user_ends_all_hosts(bench, tmp_path):
    with running(2, bench, tmp_path / "run", "--training.batch-size", 6) as runs:
        assert runs[0].exit_status() == 2, runs[0].output
        assert runs[1].exit_status() != 0, runs[1].output
    assert "A micro-batch of 3 cannot be split evenly over 2 devices" in runs[0].output


def test_hosts_are_described_by_slurm(bench, tmp_path):
    with contextlib.ExitStack() as stack:
        started = run_under_slurm(2, tmp_path / "run", bench.cache, "--dry-run")
        runs = [stack.enter_context(run) for run in started]
        assert_all_exit_with_0(runs)
    assert "2 hosts with 1 x cpu" in runs[0].output
    assert "2 hosts" not in runs[1].output
