"""Accumulation equals one step on the whole batch; the loss scale adapts and changes no result."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from helpers.training import SGD, assert_close, assert_same, linear_batch, recipe, train

from ddpm_jax.training.ema import Ema
from ddpm_jax.training.optimizer import accumulate, dynamic_loss_scale, skip_nonfinite


def test_accumulated_micro_batches_are_one_step_on_the_whole_batch():
    """Between two updates neither parameters nor averages change."""
    n = 4
    ema = Ema(decay=0.5, extra_decays=(0.9,), power=(0.1,))
    batches = [linear_batch(step) for step in range(3)]
    rows = [slice(2 * i, 2 * i + 2) for i in range(n)]
    micro_batches = [jax.tree.map(lambda x, r=r: x[r], batch) for batch in batches for r in rows]
    expected_states, _ = train(optax.sgd(0.1), batches, ema=ema)
    states, _ = train(accumulate(optax.sgd(0.1), n), micro_batches, ema=ema)
    for i, state in enumerate(states):
        expected = expected_states[i // n]
        assert int(state.step) == i // n
        assert_close((state.params, state.ema_params), (expected.params, expected.ema_params))
    for start in range(0, 3 * n, n):
        first, *others = states[start : start + n]
        for state in others:
            assert_same((state.params, state.ema_params), (first.params, first.ema_params))


def test_a_recipes_accumulation_counts_optimizer_steps():
    tx = recipe(accumulation=4, optimizer={"warmup_steps": 2}).make_optimizer(80)
    states, _ = train(tx, [linear_batch(step, 2) for step in range(8)])
    assert [int(state.step) for state in states] == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    # The first learning rate of the warm-up is 0.
    assert_same(states[4].params, states[0].params)
    assert np.abs(states[8].params["w"] - states[0].params["w"]).max() > 0


def test_gradients_are_clipped_to_the_global_norm_after_the_loss_scale_is_undone():
    """Adam's first moment after one step is 0.1 times the gradient it was given."""

    def moment(dtype, clip_norm):
        tx = recipe(dtype=dtype, optimizer={"clip_norm": clip_norm}).make_optimizer(80)
        states, metrics = train(tx, [linear_batch()])
        return optax.tree.get(states[1].opt_state, "mu"), float(metrics[0]["grad_norm"])

    unclipped, norm = moment("float32", 1e3)
    assert 1e-2 < norm < 1e2
    np.testing.assert_allclose(optax.tree.norm(unclipped), 0.1 * norm, rtol=1e-4)
    expected = jax.tree.map(lambda m: np.asarray(m) * np.float32(1e-3 / norm), unclipped)
    for dtype in ("float32", "float16"):
        clipped, unclipped_norm = moment(dtype, 1e-3)
        assert_close(clipped, expected, rtol=1e-4, atol=1e-9)
        np.testing.assert_allclose(unclipped_norm, norm, rtol=1e-4, err_msg=dtype)


def overflowing(batch):
    """Make one image of the batch infinite."""
    images = np.array(batch["image"])
    images[0] = np.inf
    return batch | {"image": jnp.asarray(images)}


def loss_scales(states):
    return [float(optax.tree.get(state.opt_state, "loss_scale")) for state in states]


def test_an_overflow_halves_the_loss_scale_and_skips_the_update_but_not_the_step():
    tx = dynamic_loss_scale(skip_nonfinite(optax.adam(0.1)))
    states, _ = train(tx, [linear_batch(0), overflowing(linear_batch(1)), linear_batch(2)])
    before, after = states[1:3]
    assert loss_scales(states) == [2.0**15, 2.0**15, 2.0**14, 2.0**14]
    assert_same(before.params, after.params)
    assert_same(before.opt_state.inner.inner, after.opt_state.inner.inner)
    assert [int(state.opt_state.inner.skipped) for state in states] == [0, 0, 1, 1]
    assert [int(state.step) for state in states] == [0, 1, 2, 3]
    assert np.abs(states[3].params["w"] - after.params["w"]).max() > 0.01


def test_the_loss_scale_doubles_after_a_period_of_finite_steps():
    tx = dynamic_loss_scale(skip_nonfinite(optax.sgd(0.01)), initial=8.0, period=3)
    batches = [linear_batch(step) for step in range(12)]
    batches[7] = overflowing(batches[7])
    states, _ = train(tx, batches)
    assert loss_scales(states) == [8, 8, 8, 16, 16, 16, 32, 32, 16, 16, 16, 32, 32]


def test_the_loss_scale_stays_within_its_bounds():
    tx = dynamic_loss_scale(skip_nonfinite(optax.sgd(0.0)), initial=2.0, period=1)
    states, _ = train(tx, [overflowing(linear_batch())] * 3 + [linear_batch()] * 26)
    rising = [2.0**power for power in range(1, 25)]
    assert loss_scales(states) == [2, 1, 1, 1, *rising, 2.0**24, 2.0**24]


def test_the_loss_scale_changes_neither_steps_nor_metrics():
    batches = [linear_batch(step) for step in range(3)]
    states, metrics = train(SGD, batches)
    scaled_states, scaled_metrics = train(dynamic_loss_scale(skip_nonfinite(SGD)), batches)
    assert_close(states[-1].params, scaled_states[-1].params)
    assert_close(metrics, scaled_metrics)


def test_accumulation_recovers_from_an_overflow():
    """The other micro-batches of the overflow are dropped too, and the next update succeeds."""
    tx = recipe(dtype="float16", accumulation=2).make_optimizer(80)
    batches = [linear_batch(step, 4) for step in range(6)]
    batches[2] = overflowing(batches[2])
    states, _ = train(tx, batches)
    assert loss_scales(states) == [2.0**15] * 4 + [2.0**14] * 3
    assert [int(state.step) for state in states] == [0, 0, 1, 1, 2, 2, 3]
    assert_same(states[4].params, states[2].params)
    assert np.abs(states[6].params["w"] - states[4].params["w"]).max() > 0
    assert np.isfinite(states[6].params["w"]).all()
