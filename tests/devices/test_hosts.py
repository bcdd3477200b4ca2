"""Several hosts, each a real process: the numbers of one, an end together, and going on with another number of them."""

import contextlib
import random
import shutil

import jax
import numpy as np
import pytest
from helpers import faults_of_processes
from helpers.bench import losses, straight
from helpers.commands import one_line, train_main
from helpers.hosts import assert_close, by_sgd
from helpers.processes import STEPS, Run, several, slurm

from ddpm_jax.devices import hosts
from ddpm_jax.runs import steps as saved_steps


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
    assert [run.ends() for run in runs] == [status] * len(runs), "\n".join(run.words for run in runs)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Arrays and losses after twenty steps of SGD on one host."""
    return by_sgd(tmp_path_factory.mktemp("one") / "run")


def test_by_sgd_parameters_and_losses_are_those_of_one_host(one, tmp_path):
    for count in (2, 4):
        assert_close(by_sgd(tmp_path / str(count), hosts=count), one)


def test_by_sgd_a_run_goes_on_with_other_hosts_and_devices_as_one_did(one, tmp_path):
    by_sgd(tmp_path / "run", devices=8, steps=10)
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    assert_close(by_sgd(tmp_path / "run", devices=1), one)
    assert_close(by_sgd(tmp_path / "again", hosts=2, devices=2), one)


def test_state_that_is_split_over_hosts_is_saved_by_parts_and_comes_back(one, tmp_path):
    """With a snapshot of averages, and a grid of samples drawn by the first host; then one host goes on alone."""
    folder = tmp_path / "run"
    by_sgd(folder, hosts=2, devices=2, fsdp=4, steps=10)
    written = {path.parent.name for path in folder.glob("checkpoints/10/params/ocdbt.process_*/manifest.ocdbt")}
    assert written == {"ocdbt.process_0", "ocdbt.process_1"}
    assert saved_steps.steps(folder, saved_steps.SNAPSHOTS) == [10]
    assert (folder / "samples" / "00000010.png").exists()
    assert_close(by_sgd(folder), one)


def test_hosts_go_back_together_where_the_parameters_are_lost(tmp_path):
    """They are NaN after step 8, which is saved; the three steps after it are skipped, and known one step later."""
    two, one = by_sgd(tmp_path / "two", hosts=2, spoilt=8), by_sgd(tmp_path / "one", spoilt=8)
    assert [step for step, loss in enumerate(two[1], 1) if loss is None] == [9, 10, 11, 12]
    assert (tmp_path / "two" / "checkpoints" / "8-1.abandoned").is_dir()
    assert all(np.isfinite(array).all() for array in two[0])
    assert_close(two, one)


def test_train_on_two_hosts_and_go_on_with_one(bench, tmp_path):
    """One log, one set of checkpoints, what is printed once; by Adam, whose parameters are not comparable."""
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


@pytest.mark.parametrize("fault", [faults_of_processes.host_killed, faults_of_processes.host_signalled])
def test_hosts_end_together(fault, bench, tmp_path):
    fault(bench._replace(folder=tmp_path), random.Random(0))


def test_a_mistake_ends_all_hosts(bench, tmp_path):
    with running(2, bench, tmp_path / "run", "--training.batch-size", 6) as runs:
        assert runs[0].ends() == 2, runs[0].words
        assert runs[1].ends() != 0, runs[1].words
    assert "a batch of 3 does not divide over 2 devices" in runs[0].words


def test_slurm_says_who_is_who(bench, tmp_path):
    with contextlib.ExitStack() as stack:
        runs = [stack.enter_context(run) for run in slurm(2, tmp_path / "run", bench.cache, "--dry-run")]
        all_end(runs)
    assert "2 hosts with 1 x cpu" in runs[0].words
    assert "2 hosts" not in runs[1].words


def test_hosts_that_are_not_described_are_refused(capsys, tmp_path):
    recipe = ["--config", "digits", "--workdir", tmp_path]
    assert "need --coordinator" in one_line(capsys, train_main, *recipe, "--hosts", 2, "--host", 0)
    for bad in (["--coordinator", "here"], ["--coordinator", "here:1", "--hosts", 2, "--host", 2]):
        assert "--coordinator HOST:PORT of the first host, --hosts COUNT" in one_line(capsys, train_main, *recipe, *bad)


def test_one_host_agrees_with_itself_at_once():
    assert [hosts.Agreement()(number) for number in (0, 15)] == [0, 15]
    assert hosts.is_first()
    assert hosts.count() == jax.process_count() == 1
    assert hosts.of_first(7) == 7
