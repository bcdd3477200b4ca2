"""Several hosts: two real ones train as one does; messages and exits are tried in this process.

Runs on more hosts, killed hosts and Slurm are in test_hosts_faults.py.
"""

import os
import sys

import jax
import numpy as np
import pytest
from helpers.commands import one_line, train_main
from helpers.hosts import (
    IMAGES,
    SAMPLED_PARAMS,
    SHORT,
    assert_close,
    outcome,
    train,
    train_replicated_and_sharded,
)

from ddpm_jax.devices import hosts
from ddpm_jax.runs import loop, saved_steps

pytestmark = pytest.mark.runs


@pytest.fixture
def one_compilation(monkeypatch):
    """Compile the step of SHORT once for all runs in this process."""
    step = loop.parallel_train_step(SHORT, SHORT.make_optimizer(len(IMAGES)))
    monkeypatch.setattr(loop, "parallel_train_step", lambda config, tx, base: step)


@pytest.mark.usefixtures("without_kernels", "one_compilation")
def test_two_hosts_train_as_one_and_one_host_resumes_their_checkpoints(tmp_path):
    """Parameters, averages and losses agree to 1e-6.

    The state is replicated, up to a SIGTERM to the second host, or sharded. Then one host resumes
    both runs on other devices. A sharded state is saved in parts, has its snapshot, and is gathered
    for the sample grid.
    """
    assert train(SHORT, tmp_path / "one") == 0
    one = outcome(tmp_path / "one", 8)
    train_replicated_and_sharded(tmp_path)
    stopped = saved_steps.newest(tmp_path / "replicated")
    assert 4 < stopped < 8
    assert len(outcome(tmp_path / "replicated", stopped)[1]) == stopped
    sharded = tmp_path / "sharded"
    assert saved_steps.newest(sharded) == 4
    parts = sharded.glob("checkpoints/4/params/ocdbt.process_*/manifest.ocdbt")
    assert {path.parent.name for path in parts} == {"ocdbt.process_0", "ocdbt.process_1"}
    assert saved_steps.steps(sharded, saved_steps.SNAPSHOTS) == [4]
    with np.load(tmp_path / SAMPLED_PARAMS) as params:
        saved = outcome(sharded, 4)[0]
        # The checkpoint holds as many parameters before the averages.
        averages = saved[len(params) :]
        for name, average in zip(params, averages, strict=False):
            np.testing.assert_array_equal(params[name], average)
    for name in ("replicated", "sharded"):
        assert train(SHORT, tmp_path / name) == 0
        assert_close(outcome(tmp_path / name, 8), one)


def test_an_incomplete_description_of_the_hosts_is_refused(capsys, tmp_path):
    message = one_line(capsys, train_main, "--config", "digits", "--workdir", tmp_path, "--host", 0)
    assert "give --coordinator HOST:PORT too." in message
    wrong = r"--coordinator HOST:PORT of the first host, --hosts COUNT"
    for described in [("here",), ("here:1",), ("here:1", 2), ("here:1", 2, 2), ("here:1", 2, -1)]:
        with pytest.raises(ValueError, match=wrong), hosts.distributed(*described):
            pytest.fail(f"{described} was accepted")


@pytest.fixture
def jax_calls(monkeypatch):
    """The calls to `jax.distributed` and `jax.config.update`, which do nothing here."""
    calls = []
    replacements = {
        "initialize": lambda *args, **options: calls.append((args, options)),
        "shutdown": lambda: calls.append("shutdown"),
    }
    for name, function in replacements.items():
        monkeypatch.setattr(jax.distributed, name, function)
    monkeypatch.setattr(jax.config, "update", lambda name, value: calls.append((name, value)))
    return calls


@pytest.mark.parametrize(
    ("described", "expected"),
    [(("here:1", 2, 1), ("here:1", 2, 1)), ((hosts.AUTO,), (None, None, None))],
    ids=["by address", "auto"],
)
def test_hosts_connect_before_the_block_and_shut_down_after_it(jax_calls, described, expected):
    """JAX's own service for SIGTERM is disabled: it would end a run without a save."""
    with hosts.distributed(*described):
        preemption, connection = jax_calls
        assert preemption == ("jax_enable_preemption_service", False)
        assert connection == (expected, {"heartbeat_timeout_seconds": 30})
    assert jax_calls[2:] == ["shutdown"]


class Exited(Exception):
    """Raised in place of ending this process."""


FAILURES = [
    (SystemExit(2), 2),
    (SystemExit(), 0),
    (SystemExit("no"), 1),
    (ZeroDivisionError(), 1),
]


@pytest.mark.parametrize(("error", "status"), FAILURES, ids=repr)
def test_a_failing_host_exits_without_a_shutdown(jax_calls, monkeypatch, error, status, capsys):
    """A shutdown waits for the other hosts, which wait for this one in the middle of a step."""

    def exit_(status):
        raise Exited(status)

    monkeypatch.setattr(os, "_exit", exit_)
    with pytest.raises(Exited) as exited, hosts.distributed("here:1", 2, 0):
        raise error
    assert exited.value.args == (status,)
    assert "shutdown" not in jax_calls
    if error.args == ("no",):
        assert capsys.readouterr().err == "no\n"


def test_a_failed_connection_is_one_error_with_the_address(jax_calls, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("DEADLINE_EXCEEDED")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    cases = {("here:1", 2, 1): "at here:1", (hosts.AUTO,): "as the environment describes them"}
    for described, where in cases.items():
        message = rf"^The hosts could not connect {where} \(DEADLINE_EXCEEDED\): start the same"
        with pytest.raises(ValueError, match=message), hosts.distributed(*described):
            pytest.fail("connected")


def test_the_error_about_a_lost_host_names_the_remedy(monkeypatch):
    lost = jax.errors.JaxRuntimeError("UNAVAILABLE: Connection reset\nby peer")
    with pytest.raises(jax.errors.JaxRuntimeError), hosts.explain_lost_host():
        raise lost
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    message = r"^Another host failed .* \(UNAVAILABLE: Connection reset by peer\): start the same"
    with pytest.raises(ConnectionError, match=message), hosts.explain_lost_host():
        raise lost
    with pytest.raises(ValueError, match=r"^a mistake$"), hosts.explain_lost_host():
        raise ValueError("a mistake")


def test_hosts_with_another_recipe_are_refused(monkeypatch):
    hosts.assert_identical({"steps": 1})
    first = []
    # The first call is that of the primary host.
    monkeypatch.setattr(hosts, "broadcast", lambda number: first.append(number) or first[0])
    hosts.assert_identical({"steps": 1})
    hosts.assert_identical({"steps": 1})
    with pytest.raises(ValueError, match="This host has another recipe, other data or another run"):
        hosts.assert_identical({"steps": 2})


@pytest.mark.parametrize("host", [0, 1])
def test_only_the_primary_host_prints_to_stdout(monkeypatch, capsys, host):
    monkeypatch.setattr(jax, "process_index", lambda: host)
    with hosts.silence_non_primary():
        print("done")
        print("problem", file=sys.stderr)
    assert capsys.readouterr() == ("" if host else "done\n", "problem\n")


def test_a_single_host_agrees_with_itself_without_delay():
    assert [hosts.DelayedMax()(number) for number in (0, 15)] == [0, 15]
    assert hosts.is_primary()
    assert hosts.count() == jax.process_count() == 1
    assert hosts.broadcast(7) == 7
