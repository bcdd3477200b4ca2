"""Skipped updates are counted and told once a row; gradients that stand out are named; nothing is read early."""

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.training.update_monitor import UpdateMonitor


def look(norms, losses=None, monitor=None, start=1):
    """A monitor, and what it says about steps of these numbers."""
    monitor = monitor or UpdateMonitor()
    for step, norm in enumerate(norms, start):
        monitor.add(
            step, jnp.float32(1.0 if losses is None else losses[step - start]), jnp.float32(norm)
        )
    return monitor, monitor.report_until(start + len(norms) - 1)


def test_usual_gradients_are_not_spoken_of():
    norms = np.random.default_rng(0).uniform(0.3, 3, 300)
    assert look(norms)[1] == []


def test_a_spike_is_named_with_its_size():
    monitor, lines = look([1.0] * 30 + [25.0] + [1.0] * 5)
    assert lines == ["step 31: gradient norm 25, 25 times the median of the last 100"]
    assert (monitor.skipped, monitor.in_a_row) == (0, 0)


def test_the_first_steps_are_no_measure():
    assert look([1.0, 50.0, 1000.0])[1] == []


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("which", ["loss", "norm"])
def test_rows_of_skips_are_told_once_each(bad, which):
    numbers = [1.0, bad, 1.0, bad, bad, bad, 1.0, bad]
    norms, losses = (numbers, [1.0] * 8) if which == "norm" else ([1.0] * 8, numbers)
    monitor, lines = look(norms, losses)
    assert [line.partition(":")[0] for line in lines] == ["step 2", "steps 4 to 6", "step 8"]
    assert (monitor.skipped, monitor.in_a_row) == (5, 1)
    monitor, lines = look([np.nan] * 2, monitor=monitor, start=9)
    assert lines == [
        "steps 9 to 10: loss or gradient not finite, nothing was changed; 7 skipped so far"
    ]
    assert monitor.in_a_row == 3
    look([1.0], monitor=monitor, start=11)
    assert (monitor.in_a_row, monitor.last_finite_step) == (0, 11)
    monitor.reset(5)
    assert (monitor.skipped, monitor.in_a_row, monitor.last_finite_step) == (7, 0, 5)


def test_later_steps_are_left_for_the_next_look():
    monitor = UpdateMonitor()
    for step in (1, 2):
        monitor.add(step, jnp.float32(1), jnp.float32(np.nan))
    assert monitor.report_until(1) == [
        "step 1: loss or gradient not finite, nothing was changed; 1 skipped so far"
    ]
    assert monitor.skipped == 1
    assert monitor.report_until(2) == [
        "step 2: loss or gradient not finite, nothing was changed; 2 skipped so far"
    ]
    assert monitor.report_until(2) == []
