"""Skipped updates are counted and reported in series; gradient spikes are reported."""

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.training.update_monitor import UpdateMonitor


def report(norms, losses=None, monitor=None, start=1):
    """Add steps with these values to a monitor. Return the monitor and its report."""
    monitor = monitor or UpdateMonitor()
    losses = losses or [1.0] * len(norms)
    for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), start):
        monitor.add(step, jnp.float32(loss), jnp.float32(norm))
    return monitor, monitor.report_until(start + len(norms) - 1)


def test_usual_gradients_are_not_reported():
    norms = np.random.default_rng(0).uniform(0.3, 3, 300)
    _, lines = report(norms)
    assert lines == []


def test_a_spike_is_reported_with_its_size():
    monitor, lines = report([1.0] * 30 + [25.0] + [1.0] * 5)
    assert lines == ["step 31: gradient norm 25, 25 times the median of the last 100"]
    assert (monitor.skipped, monitor.in_a_row) == (0, 0)


def test_a_gradient_after_zeros_is_no_spike():
    """Its ratio to their median is infinite."""
    _, lines = report([0.0] * 30 + [1.0])
    assert lines == []


def test_the_first_steps_have_no_spikes():
    _, lines = report([1.0, 50.0, 1000.0])
    assert lines == []


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("which", ["loss", "norm"])
def test_a_series_of_skips_is_reported_once(bad, which):
    values = {"loss": [1.0] * 8, "norm": [1.0] * 8}
    values[which] = [1.0, bad, 1.0, bad, bad, bad, 1.0, bad]
    monitor, lines = report(values["norm"], values["loss"])
    assert [line.partition(":")[0] for line in lines] == ["step 2", "steps 4 to 6", "step 8"]
    assert (monitor.skipped, monitor.in_a_row) == (5, 1)
    monitor, lines = report([np.nan] * 2, monitor=monitor, start=9)
    assert lines == [
        "steps 9 to 10: non-finite loss or gradient, update skipped (7 skipped so far)"
    ]
    assert monitor.in_a_row == 3
    report([1.0], monitor=monitor, start=11)
    assert (monitor.in_a_row, monitor.last_finite_step) == (0, 11)
    monitor.reset(5)
    assert (monitor.skipped, monitor.in_a_row, monitor.last_finite_step) == (7, 0, 5)


def test_later_steps_are_left_for_the_next_report():
    monitor = UpdateMonitor()
    for step in (1, 2):
        monitor.add(step, jnp.float32(1), jnp.float32(np.nan))
    assert monitor.report_until(1) == [
        "step 1: non-finite loss or gradient, update skipped (1 skipped so far)"
    ]
    assert monitor.skipped == 1
    assert monitor.report_until(2) == [
        "step 2: non-finite loss or gradient, update skipped (2 skipped so far)"
    ]
    assert monitor.report_until(2) == []
