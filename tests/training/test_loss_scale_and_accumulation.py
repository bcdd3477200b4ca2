"""Accumulation equals the whole batch; the loss scale follows overflows and changes nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from helpers.training import SGD, assert_close, assert_same, linear_batch, recipe, train

from ddpm_jax.training.ema import Ema
from ddpm_jax.training.optimizer import accumulate, dynamic_loss_scale, skip_nonfinite


def test_accumulated_micro_batches_are_one_step_on_the_whole_batch():
    """Nothing moves within them."""
    count, ema = 4, Ema(decay=0.5, extra_decays=(0.9,), power=(0.1,))
    whole = [linear_batch(step) for step in range(3)]
    rows = [slice(2 * i, 2 * i + 2) for i in range(count)]
    micro = [jax.tree.map(lambda x, r=r: x[r], batch) for batch in whole for r in rows]
    wanted, _ = train(optax.sgd(0.1), whole, ema=ema)
    states, _ = train(accumulate(optax.sgd(0.1), count), micro, ema=ema)
    for i, state in enumerate(states):
        same = wanted[i // count]
        assert int(state.step) == i // count
        assert_close((state.params, state.ema_params), (same.params, same.ema_params))
    for start in range(0, 3 * count, count):
        within = states[start : start + count]
        for state in within[1:]:
            assert_same((state.params, state.ema_params), (within[0].params, within[0].ema_params))


def test_a_recipes_accumulation_counts_optimizer_steps():
    tx = recipe(accumulation=4, optimizer={"warmup_steps": 2}).make_optimizer(80)
    states, _ = train(tx, [linear_batch(step, 2) for step in range(8)])
    assert [int(state.step) for state in states] == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    assert_same(states[4].params, states[0].params)  # the first rate of the warm-up is 0
    assert np.abs(states[8].params["w"] - states[0].params["w"]).max() > 0


def test_gradients_are_clipped_to_the_global_norm_after_the_loss_scale_is_undone():
    """Adam's first moment after one step is 0.1 times the gradient that it saw."""

    def moment(dtype, clip_norm):
        tx = recipe(dtype=dtype, optimizer={"clip_norm": clip_norm}).make_optimizer(80)
        states, metrics = train(tx, [linear_batch()])
        return optax.tree.get(states[1].opt_state, "mu"), float(metrics[0]["grad_norm"])

    whole, norm = moment("float32", 1e3)
    assert 1e-2 < norm < 1e2
    np.testing.assert_allclose(optax.tree.norm(whole), 0.1 * norm, rtol=1e-4)
    wanted = jax.tree.map(lambda m: np.asarray(m) * np.float32(1e-3 / norm), whole)
    for dtype in ("float32", "float16"):
        clipped, unclipped_norm = moment(dtype, 1e-3)
        assert_close(clipped, wanted, rtol=1e-4, atol=1e-9)
        np.testing.assert_allclose(unclipped_norm, norm, rtol=1e-4, err_msg=dtype)


def overflowing(batch):
    """The batch with one image at infinity."""
    images = np.array(batch["image"])
    images[0] = np.inf
    return batch | {"image": jnp.asarray(images)}


def scales(states):
    return [float(optax.tree.get(state.opt_state, "loss_scale")) for state in states]


def test_an_overflow_halves_the_loss_scale_and_skips_the_update_but_not_the_step():
    tx = dynamic_loss_scale(skip_nonfinite(optax.adam(0.1)))
    states, _ = train(tx, [linear_batch(0), overflowing(linear_batch(1)), linear_batch(2)])
    before, after = states[1:3]
    assert scales(states) == [2.0**15, 2.0**15, 2.0**14, 2.0**14]
    assert_same(
        (before.params, before.opt_state.inner.inner), (after.params, after.opt_state.inner.inner)
    )
    assert [int(state.opt_state.inner.skipped) for state in states] == [0, 0, 1, 1]
    assert [int(state.step) for state in states] == [0, 1, 2, 3]
    assert np.abs(states[3].params["w"] - after.params["w"]).max() > 0.01


def test_the_loss_scale_doubles_after_a_period_of_good_steps_in_a_row():
    tx = dynamic_loss_scale(skip_nonfinite(optax.sgd(0.01)), initial=8.0, period=3)
    batches = [linear_batch(step) for step in range(12)]
    batches[7] = overflowing(batches[7])
    assert scales(train(tx, batches)[0]) == [8, 8, 8, 16, 16, 16, 32, 32, 16, 16, 16, 32, 32]


def test_the_loss_scale_stays_within_its_bounds():
    tx = dynamic_loss_scale(skip_nonfinite(optax.sgd(0.0)), initial=2.0, period=1)
    found = scales(train(tx, [overflowing(linear_batch())] * 3 + [linear_batch()] * 26)[0])
    assert found == [2, 1, 1, 1, *(2.0**power for power in range(1, 25)), 2.0**24, 2.0**24]


def test_the_loss_scale_changes_neither_steps_nor_metrics():
    batches = [linear_batch(step) for step in range(3)]
    (plain, metrics), (scaled, scaled_metrics) = (
        train(SGD, batches),
        train(dynamic_loss_scale(skip_nonfinite(SGD)), batches),
    )
    assert_close(plain[-1].params, scaled[-1].params)
    assert_close(metrics, scaled_metrics)


def test_accumulation_recovers_from_an_overflow():
    """The micro-batches of an overflow are thrown away with it, and the next optimizer step is a good one."""
    tx = recipe(dtype="float16", accumulation=2).make_optimizer(80)
    batches = [linear_batch(step, 4) for step in range(6)]
    batches[2] = overflowing(batches[2])
    states, _ = train(tx, batches)
    assert scales(states) == [2.0**15] * 4 + [2.0**14] * 3
    assert [int(state.step) for state in states] == [0, 0, 1, 1, 2, 2, 3]
    assert_same(states[4].params, states[2].params)
    assert np.abs(states[6].params["w"] - states[4].params["w"]).max() > 0
    assert np.isfinite(states[6].params["w"]).all()
