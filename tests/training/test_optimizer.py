"""Learning rates and weight decay against closed forms; non-finite updates change no bit."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
from helpers.refusals import assert_refused
from helpers.training import assert_close, linear_batch, linear_loss, linear_params, recipe, train

from ddpm_jax.training.ema import Ema
from ddpm_jax.training.optimizer import (
    Optimizer,
    learning_rate,
    make_optimizer,
    skip_nonfinite,
)


def rates(total_steps=100, steps_per_epoch=10, n=None, **settings):
    """The learning rates of the first `n` steps, by default of all."""
    rate = learning_rate(Optimizer(**settings), total_steps, steps_per_epoch)
    steps = np.arange(total_steps if n is None else n)
    return np.asarray(jax.jit(jax.vmap(rate))(steps))


def test_warmup_is_linear_from_zero():
    for decay in ("constant", "cosine", "epoch_cosine"):
        actual = rates(learning_rate=1e-3, decay=decay, warmup_steps=20)
        np.testing.assert_allclose(actual[:20], 1e-3 * np.arange(20) / 20, rtol=1e-6, err_msg=decay)
        np.testing.assert_allclose(actual[20], 1e-3, rtol=1e-6, err_msg=decay)
        if decay == "constant":
            np.testing.assert_allclose(actual[20:], 1e-3, rtol=1e-6)


def test_micro_batches_that_cannot_be_counted_are_refused(monkeypatch):
    # The type check that is on in tests would refuse them earlier.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)

    def make(accumulation):
        make_optimizer(Optimizer(), 10, 10, accumulation=accumulation)

    cases = [(2.5, "accumulation must be an integer, not 2.5"), (0, "at least 1, not 0")]
    assert_refused(make, cases)


def test_cosine_decays_to_the_floor_and_stays():
    for warmup in (0, 20):
        settings = {"learning_rate": 1e-3, "decay": "cosine", "floor": 1e-5}
        actual = rates(**settings, warmup_steps=warmup, n=150)
        fraction = np.minimum((np.arange(warmup, 150) - warmup) / (100 - warmup), 1)
        expected = 1e-5 + 99e-5 * (1 + np.cos(np.pi * fraction)) / 2
        case = f"warm-up of {warmup}"
        np.testing.assert_allclose(actual[warmup:], expected, rtol=1e-4, err_msg=case)
        np.testing.assert_allclose(actual[100:], 1e-5, rtol=1e-4, err_msg=case)


def test_epoch_cosine_is_pytorchs_cosine_annealing_stepped_once_per_epoch():
    """CosineAnnealingLR(T_max=epochs, eta_min=floor).

    Its rate is eta_min + (lr - eta_min) (1 + cos(pi epoch / T_max)) / 2.
    """
    settings = {"learning_rate": 2e-3, "decay": "epoch_cosine", "floor": 1e-5}
    actual = rates(total_steps=7 * 13, steps_per_epoch=13, **settings)
    epoch = np.repeat(np.arange(7), 13)
    expected = 1e-5 + (2e-3 - 1e-5) * (1 + np.cos(np.pi * epoch / 7)) / 2
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_adamw_decays_weights_and_adam_does_not():
    params = linear_params()
    for name, factor in (("adam", 1.0), ("adamw", 1 - 0.01 * 0.3)):
        settings = {"name": name, "learning_rate": 0.01, "weight_decay": 0.3}
        tx = recipe(optimizer=settings).make_optimizer(80)
        states, _ = train(tx, [linear_batch()], loss=flat_loss)
        assert_close(states[1].params, jax.tree.map(lambda p, f=factor: p * f, params))


def flat_loss(params, keys, batch):
    """A loss whose gradient is 0."""
    return 0 * linear_loss(params, keys, batch)


def bits(tree):
    """The bytes of each array, so that -0.0 differs from 0.0."""
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def nonfinite_loss(params, keys, batch):
    """`linear_loss` plus `to_loss` of the batch, with `to_gradient` added to its gradient alone."""
    gradient_only = zero_with_gradient(params["w"][0, 0], batch["to_gradient"])
    return linear_loss(params, keys, batch) + batch["to_loss"] + gradient_only


@jax.custom_vjp
def zero_with_gradient(x, gradient):
    """A zero whose derivative by x is `gradient`."""
    return 0 * x + jnp.zeros_like(gradient)


zero_with_gradient.defvjp(
    lambda x, gradient: (zero_with_gradient(x, gradient), gradient),
    lambda gradient, g: (jnp.sum(gradient * g), jnp.zeros_like(gradient)),
)

NOTHING_ADDED = {"to_loss": 0.0, "to_gradient": 0.0}
NONFINITE = [{name: value} for name in NOTHING_ADDED for value in (np.nan, np.inf, -np.inf)]
# The square of this gradient overflows, and so does its norm.
NONFINITE.append({"to_gradient": 1e30})
RECIPES = {
    "adam": recipe(),
    "adamw, clipped": recipe(optimizer={"name": "adamw", "clip_norm": 1.0}),
    "float16": recipe(dtype="float16"),
}


def batch_with(step, added):
    """A batch for `nonfinite_loss`."""
    values = NOTHING_ADDED | added
    return linear_batch(step) | {name: np.full(8, x, np.float32) for name, x in values.items()}


@pytest.mark.parametrize("name", RECIPES)
def test_a_nonfinite_update_changes_nothing_and_is_counted(name):
    tx = RECIPES[name].make_optimizer(80)
    params = linear_params() | {"b": -jnp.zeros(3)}
    ema = Ema(extra_decays=(0.5,), power=(0.1,))

    def weights(state):
        return bits((state.params, state.ema_params))

    def moments(state):
        skip_state = state.opt_state.inner if name == "float16" else state.opt_state
        return bits(skip_state.inner)

    for bad in NONFINITE:
        batches = [batch_with(0, {}), batch_with(1, bad), batch_with(2, bad), batch_with(3, {})]
        states, _ = train(tx, batches, ema=ema, params=params, loss=nonfinite_loss)
        assert weights(states[1]) == weights(states[2]) == weights(states[3]), bad
        assert moments(states[1]) == moments(states[2]) == moments(states[3]), bad
        counters = {"skipped": [0, 0, 1, 2, 2], "skipped_in_a_row": [0, 0, 1, 2, 0]}
        for counter, expected in counters.items():
            counts = [int(optax.tree.get(state.opt_state, counter)) for state in states]
            assert counts == expected, (bad, counter)
        assert [int(state.step) for state in states] == [0, 1, 2, 3, 4], bad
        assert weights(states[3]) != weights(states[4]), bad
        assert np.isfinite(states[4].params["w"]).all(), bad


@pytest.mark.parametrize("dtype", ["float16", jnp.float16, np.float16, jnp.dtype("float16")])
def test_float16_gets_a_loss_scale_however_it_is_named(dtype):
    state = make_optimizer(Optimizer(), 10, 10, dtype=dtype).init({"w": jnp.ones(3)})
    assert optax.tree.get(state, "loss_scale") == 2.0**15


def test_a_skipped_update_keeps_negative_zeros():
    params = {"w": jnp.asarray([-0.0, 0.0, 1.0])}
    tx = skip_nonfinite(optax.sgd(0.1))
    updates, _ = tx.update({"w": jnp.full(3, jnp.nan)}, tx.init(params), params)
    assert bits(optax.apply_updates(params, updates)) == bits(params)
