"""Skipped updates are counted and told once a row; gradients that stand out are named; nothing is read early."""

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.training.update_monitor import Watch


def look(norms, losses=None, watch=None, start=1):
    """A watch, and what it says about steps of these numbers."""
    watch = watch or Watch()
    for step, norm in enumerate(norms, start):
        watch.add(step, jnp.float32(1.0 if losses is None else losses[step - start]), jnp.float32(norm))
    return watch, watch.look(start + len(norms) - 1)


def test_usual_gradients_are_not_spoken_of():
    norms = np.random.default_rng(0).uniform(0.3, 3, 300)
    assert look(norms)[1] == []


def test_a_spike_is_named_with_its_size():
    watch, lines = look([1.0] * 30 + [25.0] + [1.0] * 5)
    assert lines == ["step 31: gradient norm 25, 25 times the median of the last 100"]
    assert (watch.skipped, watch.in_a_row) == (0, 0)


def test_the_first_steps_are_no_measure():
    assert look([1.0, 50.0, 1000.0])[1] == []


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("which", ["loss", "norm"])
def test_rows_of_skips_are_told_once_each(bad, which):
    numbers = [1.0, bad, 1.0, bad, bad, bad, 1.0, bad]
    norms, losses = (numbers, [1.0] * 8) if which == "norm" else ([1.0] * 8, numbers)
    watch, lines = look(norms, losses)
    assert [line.partition(":")[0] for line in lines] == ["step 2", "steps 4 to 6", "step 8"]
    assert (watch.skipped, watch.in_a_row) == (5, 1)
    watch, lines = look([np.nan] * 2, watch=watch, start=9)
    assert lines == ["steps 9 to 10: loss or gradient not finite, nothing was changed; 7 skipped so far"]
    assert watch.in_a_row == 3
    look([1.0], watch=watch, start=11)
    assert (watch.in_a_row, watch.last_good) == (0, 11)
    watch.start_over(5)
    assert (watch.skipped, watch.in_a_row, watch.last_good) == (7, 0, 5)


def test_later_steps_are_left_for_the_next_look():
    watch = Watch()
    for step in (1, 2):
        watch.add(step, jnp.float32(1), jnp.float32(np.nan))
    assert watch.look(1) == ["step 1: loss or gradient not finite, nothing was changed; 1 skipped so far"]
    assert watch.skipped == 1
    assert watch.look(2) == ["step 2: loss or gradient not finite, nothing was changed; 2 skipped so far"]
    assert watch.look(2) == []
