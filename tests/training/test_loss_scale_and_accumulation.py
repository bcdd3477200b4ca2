"""Accumulation equals the whole batch; the loss scale follows overflows and changes nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.training import assert_close, assert_same, linear_batch, recipe, train

from ddpm_jax.training.ema import Ema
from ddpm_jax.training.optimizer import dynamic_loss_scale, make_optimizer, skip_nonfinite


@pytest.mark.parametrize("count", [2, 4])
def test_accumulated_micro_batches_are_one_step_on_the_whole_batch(count):
    whole = [linear_batch(step) for step in range(3)]
    rows = [slice(i * 8 // count, (i + 1) * 8 // count) for i in range(count)]
    micro = [jax.tree.map(lambda x, r=r: x[r], batch) for batch in whole for r in rows]
    ema = Ema(decay=0.5, others=(0.9,), power=(0.1,))
    wanted, _ = train(optax.sgd(0.1), whole, ema=ema)
    states, _ = train(optax.MultiSteps(optax.sgd(0.1), count).gradient_transformation(), micro, ema=ema)
    for i, state in enumerate(states):
        same = wanted[i // count]
        assert int(state.step) == i // count
        assert_close((state.params, state.ema_params), (same.params, same.ema_params))
    for start in range(0, 3 * count, count):
        within = states[start : start + count]
        for state in within[1:]:
            assert_same((state.params, state.ema_params), (within[0].params, within[0].ema_params))


def test_a_recipes_accumulation_counts_optimizer_steps():
    tx = make_optimizer(recipe(accumulation=4, optimizer={"warmup_steps": 2}), images=80)
    states, _ = train(tx, [linear_batch(step, 2) for step in range(8)])
    assert [int(state.step) for state in states] == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    assert_same(states[4].params, states[0].params)  # the first rate of the warm-up is 0
    assert np.abs(states[8].params["w"] - states[0].params["w"]).max() > 0


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_gradients_are_clipped_to_the_global_norm_after_the_loss_scale_is_undone(dtype):
    """Adam's first moment after one step is 0.1 times the gradient that it saw."""
    means = {}
    for clip_norm in (None, 1e-3, 1e3):
        tx = make_optimizer(recipe(dtype=dtype, optimizer={"clip_norm": clip_norm}), images=80)
        states, metrics = train(tx, [linear_batch()])
        means[clip_norm] = optax.tree.get(states[1].opt_state, "mu")
        norm = float(metrics[0]["grad_norm"])
    assert 1e-2 < norm < 1e2
    assert_close(means[1e3], means[None])
    np.testing.assert_allclose(optax.tree.norm(means[None]), 0.1 * norm, rtol=1e-4)
    assert_close(means[1e-3], jax.tree.map(lambda m: m * (1e-3 / norm), means[None]), rtol=1e-4, atol=1e-9)


def overflowing(batch):
    """The batch with one image at infinity."""
    return batch | {"image": batch["image"].at[0].set(jnp.inf)}


def scales(states):
    return [float(optax.tree.get(state.opt_state, "loss_scale")) for state in states]


def test_an_overflow_halves_the_loss_scale_and_skips_the_update_but_not_the_step():
    tx = dynamic_loss_scale(skip_nonfinite(optax.adam(0.1)))
    states, _ = train(tx, [linear_batch(0), overflowing(linear_batch(1)), linear_batch(2)])
    before, after = states[1:3]
    assert scales(states) == [2.0**15, 2.0**15, 2.0**14, 2.0**14]
    assert_same((before.params, before.opt_state.inner.inner), (after.params, after.opt_state.inner.inner))
    assert [int(state.opt_state.inner.skipped) for state in states] == [0, 0, 1, 1]
    assert [int(state.step) for state in states] == [0, 1, 2, 3]
    assert np.abs(states[3].params["w"] - after.params["w"]).max() > 0.01


def test_the_loss_scale_doubles_after_a_period_of_good_steps_in_a_row():
    tx = dynamic_loss_scale(skip_nonfinite(optax.sgd(0.01)), initial=8.0, period=3)
    batches = [linear_batch(step) for step in range(12)]
    batches[7] = overflowing(batches[7])
    assert scales(train(tx, batches)[0]) == [8, 8, 8, 16, 16, 16, 32, 32, 16, 16, 16, 32, 32]


def test_the_loss_scale_stays_within_its_bounds():
    good, bad = linear_batch(), overflowing(linear_batch())
    assert scales(train(dynamic_loss_scale(skip_nonfinite(optax.sgd(0.0)), 2.0), [bad] * 3)[0]) == [2, 1, 1, 1]
    assert scales(train(dynamic_loss_scale(skip_nonfinite(optax.sgd(0.0)), 2.0**23, 1), [good] * 3)[0]) == [
        2**23,
        2**24,
        2**24,
        2**24,
    ]


def test_the_loss_scale_changes_neither_steps_nor_metrics():
    batches = [linear_batch(step) for step in range(3)]
    (plain, metrics), (scaled, scaled_metrics) = (
        train(optax.sgd(0.1), batches),
        train(dynamic_loss_scale(skip_nonfinite(optax.sgd(0.1))), batches),
    )
    assert_close(plain[-1].params, scaled[-1].params)
    assert_close(metrics, scaled_metrics)


def test_accumulation_recovers_from_an_overflow():
    """The micro-batches of an overflow are thrown away with it, and the next optimizer step is a good one."""
    tx = make_optimizer(recipe(dtype="float16", accumulation=2), images=80)
    batches = [linear_batch(step, 4) for step in range(6)]
    batches[2] = overflowing(batches[2])
    states, _ = train(tx, batches)
    assert scales(states) == [2.0**15] * 4 + [2.0**14] * 3
    assert [int(state.step) for state in states] == [0, 0, 1, 1, 2, 2, 3]
    assert_same(states[4].params, states[2].params)
    assert np.abs(states[6].params["w"] - states[4].params["w"]).max() > 0
    assert np.isfinite(states[6].params["w"]).all()
