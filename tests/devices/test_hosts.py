"""Several hosts: two real ones train as one does; messages and the end of a host, in this process.

More hosts, and hosts that are killed or started by Slurm, are in test_hosts_faults.py.
"""

import os
import sys

import jax
import numpy as np
import pytest
from helpers.commands import one_line, train_main
from helpers.hosts import DRAWN, SHORT, assert_close, both_ways_on_two_hosts, outcome, train

from ddpm_jax.devices import hosts
from ddpm_jax.runs import steps as saved_steps


def test_two_hosts_train_as_one_and_one_host_resumes_what_they_saved(tmp_path):
    """With the state whole on each device, up to a SIGTERM to the second host, and with it split.

    Then one host resumes on other devices. Parameters, averages and losses agree to 1e-6. A state
    that is split is saved by parts, has its snapshot, and is gathered for the grid of samples.
    """
    assert train(SHORT, tmp_path / "one") == 0
    one = outcome(tmp_path / "one", 8)
    both_ways_on_two_hosts(tmp_path)
    stopped = saved_steps.newest(tmp_path / "whole")
    assert 2 < stopped < 8
    assert len(outcome(tmp_path / "whole", stopped)[1]) == stopped
    split = tmp_path / "split"
    assert saved_steps.newest(split) == 4
    parts = split.glob("checkpoints/4/params/ocdbt.process_*/manifest.ocdbt")
    assert {path.parent.name for path in parts} == {"ocdbt.process_0", "ocdbt.process_1"}
    assert saved_steps.steps(split, saved_steps.SNAPSHOTS) == [4]
    with np.load(tmp_path / DRAWN) as drawn:
        saved = outcome(split, 4)[0]
        for name, average in zip(drawn, saved[len(drawn) :], strict=False):
            np.testing.assert_array_equal(drawn[name], average)
    for name in ("whole", "split"):
        assert train(SHORT, tmp_path / name) == 0
        assert_close(outcome(tmp_path / name, 8), one)


def test_hosts_that_are_not_described_are_refused(capsys, tmp_path):
    message = one_line(capsys, train_main, "--config", "digits", "--workdir", tmp_path, "--host", 0)
    assert "need --coordinator" in message
    wrong = r"--coordinator HOST:PORT of the first host, --hosts COUNT"
    for described in [("here",), ("here:1",), ("here:1", 2), ("here:1", 2, 2), ("here:1", 2, -1)]:
        with pytest.raises(ValueError, match=wrong), hosts.distributed(*described):
            pytest.fail(f"{described} was taken")


@pytest.fixture
def initialized(monkeypatch):
    """What `jax.distributed` was called with."""
    calls = []
    update = {"initialize": lambda *args, **options: calls.append((args, options))}
    update["shutdown"] = lambda: calls.append("shutdown")
    for name, function in update.items():
        monkeypatch.setattr(jax.distributed, name, function)
    monkeypatch.setattr(jax.config, "update", lambda name, value: calls.append((name, value)))
    return calls


@pytest.mark.parametrize(
    ("described", "given"),
    [(("here:1", 2, 1), ("here:1", 2, 1)), ((hosts.AUTO,), (None, None, None))],
    ids=["by address", "auto"],
)
def test_hosts_are_connected_before_the_block_and_left_after_it(initialized, described, given):
    """SIGTERM is left to ddpm_jax: JAX's own service for it would end a run without a save."""
    with hosts.distributed(*described):
        preemption, connection = initialized
        assert preemption == ("jax_enable_preemption_service", False)
        assert connection == (given, {"heartbeat_timeout_seconds": 30})
    assert initialized[2:] == ["shutdown"]


class Exited(Exception):
    """In place of the end of this process."""


FAILURES = [(SystemExit(2), 2), (SystemExit("no"), 1), (ZeroDivisionError(), 1)]


@pytest.mark.parametrize(("error", "status"), FAILURES, ids=repr)
def test_a_host_that_fails_ends_without_a_shutdown(initialized, monkeypatch, error, status):
    """A shutdown waits for the other hosts, which wait for this one in the middle of a step."""

    def exit_(status):
        raise Exited(status)

    monkeypatch.setattr(os, "_exit", exit_)
    with pytest.raises(Exited) as exited, hosts.distributed("here:1", 2, 0):
        raise error
    assert exited.value.args == (status,)
    assert "shutdown" not in initialized


def test_hosts_that_do_not_find_each_other_are_one_line(initialized, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("DEADLINE_EXCEEDED")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    cases = {("here:1", 2, 1): "at here:1", (hosts.AUTO,): "in the surroundings"}
    for described, where in cases.items():
        message = f"the hosts did not find each other {where}: DEADLINE_EXCEEDED"
        with pytest.raises(ValueError, match=message), hosts.distributed(*described):
            pytest.fail("connected")


def test_the_loss_of_another_host_names_the_remedy(monkeypatch):
    lost = jax.errors.JaxRuntimeError("UNAVAILABLE: Connection reset\nby peer")
    with pytest.raises(jax.errors.JaxRuntimeError), hosts.explain_lost_host():
        raise lost
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    named = r"another host is gone, .* \(UNAVAILABLE: Connection reset by peer\): start the same"
    with pytest.raises(ConnectionError, match=named), hosts.explain_lost_host():
        raise lost
    with pytest.raises(ValueError, match=r"^a mistake$"), hosts.explain_lost_host():
        raise ValueError("a mistake")


def test_hosts_with_another_recipe_are_refused(monkeypatch):
    hosts.assert_identical({"steps": 1})
    first = []
    monkeypatch.setattr(hosts, "broadcast", lambda mine: first.append(mine) or first[0])
    hosts.assert_identical({"steps": 1})
    hosts.assert_identical({"steps": 1})
    with pytest.raises(ValueError, match="this host has another recipe, other data or another run"):
        hosts.assert_identical({"steps": 2})


@pytest.mark.parametrize("host", [0, 1])
def test_only_the_first_host_prints(monkeypatch, capsys, host):
    monkeypatch.setattr(jax, "process_index", lambda: host)
    with hosts.silence_non_primary():
        print("done")
        print("problem", file=sys.stderr)
    assert capsys.readouterr() == ("" if host else "done\n", "problem\n")


def test_one_host_agrees_with_itself_at_once():
    assert [hosts.DelayedMax()(number) for number in (0, 15)] == [0, 15]
    assert hosts.is_primary()
    assert hosts.count() == jax.process_count() == 1
    assert hosts.broadcast(7) == 7
