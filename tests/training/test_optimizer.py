"""Learning rates and weight decay against closed forms; updates that are not finite are skipped, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.training import assert_close, linear_batch, linear_loss, linear_params, recipe, train

from ddpm_jax.training.ema import Ema
from ddpm_jax.training.optimizer import Optimizer, learning_rate, make_optimizer, skip_nonfinite


def rates(total_steps=100, steps_per_epoch=10, count=None, **settings):
    rate = learning_rate(Optimizer(**settings), total_steps, steps_per_epoch)
    return np.asarray(jax.vmap(rate)(jnp.arange(total_steps if count is None else count)))


def test_a_constant_rate_is_constant():
    np.testing.assert_allclose(rates(learning_rate=3e-4), 3e-4, rtol=1e-6)


@pytest.mark.parametrize("decay", ["constant", "cosine", "epoch_cosine"])
def test_warmup_rises_from_zero_in_a_straight_line(decay):
    found = rates(learning_rate=1e-3, decay=decay, warmup_steps=20)
    np.testing.assert_allclose(found[:20], 1e-3 * np.arange(20) / 20, rtol=1e-6)
    np.testing.assert_allclose(found[20], 1e-3, rtol=1e-6)


@pytest.mark.parametrize("warmup", [0, 20])
def test_cosine_falls_along_half_a_wave_to_the_floor_and_stays(warmup):
    found = rates(learning_rate=1e-3, decay="cosine", floor=1e-5, warmup_steps=warmup, count=150)
    share = np.minimum((np.arange(warmup, 150) - warmup) / (100 - warmup), 1)
    np.testing.assert_allclose(found[warmup:], 1e-5 + 99e-5 * (1 + np.cos(np.pi * share)) / 2, rtol=1e-4)
    np.testing.assert_allclose(found[100:], 1e-5, rtol=1e-4)


def test_epoch_cosine_is_pytorchs_cosine_annealing_stepped_once_an_epoch():
    """CosineAnnealingLR(T_max=epochs, eta_min=floor): eta_min + (lr - eta_min) (1 + cos(pi epoch / T_max)) / 2."""
    found = rates(total_steps=7 * 13, steps_per_epoch=13, learning_rate=2e-3, decay="epoch_cosine", floor=1e-5)
    epoch = np.repeat(np.arange(7), 13)
    np.testing.assert_allclose(found, 1e-5 + (2e-3 - 1e-5) * (1 + np.cos(np.pi * epoch / 7)) / 2, rtol=1e-5)


def test_adamw_decays_weights_and_adam_does_not():
    zero_grads, params = jax.tree.map(jnp.zeros_like, linear_params()), linear_params()
    for name, factor in (("adam", 1.0), ("adamw", 1 - 0.01 * 0.3)):
        settings = {"name": name, "learning_rate": 0.01, "weight_decay": 0.3}
        tx = make_optimizer(recipe(optimizer=settings), images=80)
        with jax.numpy_dtype_promotion("standard"):
            updates, _ = tx.update(zero_grads, tx.init(params), params)
        assert_close(optax.apply_updates(params, updates), jax.tree.map(lambda p, f=factor: p * f, params))


def bits(tree):
    """Every array's bytes, so that -0.0 is not 0.0."""
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def bad_loss(params, keys, batch):
    """`linear_loss`, and where a batch says so, a loss or a gradient that is not finite, the other as it was."""
    return linear_loss(params, keys, batch) + batch["to_loss"] + _slope(params["w"][0, 0], batch["to_gradient"])


@jax.custom_vjp
def _slope(x, by_x):
    """0, with that gradient by x."""
    return 0 * x + jnp.zeros_like(by_x)


_slope.defvjp(lambda x, by_x: (_slope(x, by_x), by_x), lambda by_x, g: (jnp.sum(by_x * g), jnp.zeros_like(by_x)))

GOOD = {"to_loss": 0.0, "to_gradient": 0.0}
BAD = [{name: value} for name in GOOD for value in (np.nan, np.inf, -np.inf)] + [{"to_gradient": 1e30}]
TRANSFORMATIONS = {
    "adam": lambda: make_optimizer(recipe(), images=80),
    "adamw, clipped": lambda: make_optimizer(recipe(optimizer={"name": "adamw", "clip_norm": 1.0}), images=80),
    "float16": lambda: make_optimizer(recipe(dtype="float16"), images=80),
}


def batch_with(step, changes):
    return linear_batch(step) | {name: jnp.full(8, value) for name, value in (GOOD | changes).items()}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
@pytest.mark.parametrize("bad", BAD, ids=str)
def test_what_is_not_finite_changes_nothing_and_is_counted(name, bad):
    params = linear_params() | {"b": -jnp.zeros(3)}
    batches = [batch_with(0, {}), batch_with(1, bad), batch_with(2, bad), batch_with(3, {})]
    states, _ = train(
        TRANSFORMATIONS[name](), batches, ema=Ema(others=(0.5,), power=(0.1,)), params=params, loss=bad_loss
    )

    def kept(state):
        return bits((state.params, state.ema_params))

    def moments(state):
        skips = state.opt_state.inner if name == "float16" else state.opt_state
        return bits(skips.inner)

    assert kept(states[1]) == kept(states[2]) == kept(states[3])
    assert moments(states[1]) == moments(states[2]) == moments(states[3])
    for counter, wanted in (("skipped", [0, 0, 1, 2, 2]), ("skipped_in_a_row", [0, 0, 1, 2, 0])):
        assert [int(optax.tree.get(state.opt_state, counter)) for state in states] == wanted
    assert [int(state.step) for state in states] == [0, 1, 2, 3, 4]
    assert kept(states[3]) != kept(states[4])
    assert np.isfinite(states[4].params["w"]).all()


def test_negative_zeros_stay_what_they_are():
    params = {"w": jnp.asarray([-0.0, 0.0, 1.0])}
    tx = skip_nonfinite(optax.sgd(0.1))
    updates, _ = tx.update({"w": jnp.full(3, jnp.nan)}, tx.init(params), params)
    assert bits(optax.apply_updates(params, updates)) == bits(params)
