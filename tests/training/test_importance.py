"""Importance-sampled timesteps: Eq. 18, without bias, the same on any number of devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.training import (
    CONV_UNET,
    assert_close,
    assert_same,
    linear_batch,
    linear_loss,
    linear_params,
)

from ddpm_jax.config import Config, Training
from ddpm_jax.data.digits import Digits
from ddpm_jax.devices import parallel
from ddpm_jax.diffusion.losses import vlb_loss
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.diffusion.schedule import from_betas
from ddpm_jax.training import importance
from ddpm_jax.training.ema import Ema
from ddpm_jax.training.importance import (
    LossHistory,
    draw_timesteps,
    keep_losses,
    probabilities,
    record,
)
from ddpm_jax.training.step import init_state, make_train_step, model_loss

T = 8
ROOTS = np.array([5.0, 0.1, 1.0, 2.0, 0.0, 3.0, 0.5, 0.4])
ALL_SEEN = LossHistory(jnp.asarray(ROOTS**2, jnp.float32), jnp.full(T, 10))
P = 0.999 * ROOTS / ROOTS.sum() + 0.001 / T
N = 8000


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


jitted_draw = jax.jit(draw_timesteps)
jitted_probabilities = jax.jit(probabilities)


@jax.jit
def jitted_record(history, t, losses):
    return record(history, t, losses, lambda tree: tree)


def test_probabilities_are_eq_18_with_a_uniform_fraction():
    np.testing.assert_allclose(jitted_probabilities(ALL_SEEN), P, rtol=1e-5)


def test_probabilities_are_uniform_until_every_t_was_drawn_ten_times():
    seldom = ALL_SEEN._replace(seen=jnp.array([10, 10, 10, 10, 9, 10, 10, 10]))
    for history in (seldom, ALL_SEEN._replace(mean_square=jnp.zeros(T))):
        p = jitted_probabilities(history)
        np.testing.assert_allclose(p, 1 / T, rtol=1e-6, err_msg=str(history))


def test_t_is_drawn_with_its_probability_from_the_examples_own_key():
    t, weights = map(np.asarray, jitted_draw(keys(N), ALL_SEEN))
    counts = np.bincount(t, minlength=T)
    assert np.all(np.abs(counts - N * P) < 5 * np.sqrt(N * P))
    assert t.dtype == np.int32
    np.testing.assert_allclose(weights, 1 / (T * P[t]), rtol=1e-4)
    reversed_t, _ = jitted_draw(keys(N)[::-1], ALL_SEEN)
    np.testing.assert_array_equal(reversed_t, t[::-1])


def test_weighted_losses_estimate_the_bound_without_bias_and_with_less_noise():
    """The weighted loss at drawn t has the mean of the loss at uniform t."""
    schedule = from_betas(np.linspace(0.05, 0.8, T))
    x0 = jnp.asarray(0.5 * np.random.default_rng(1).standard_normal((N, 2, 2, 1)), jnp.float32)
    network = lambda xt, t: 0.4 * xt  # noqa: E731
    vlb = jax.jit(lambda t: vlb_loss(keys(N), schedule, network, x0, "v", "fixed_small", t=t))
    at_every_t = np.stack([vlb(np.full(N, t, np.int32)) for t in range(T)])  # (T, n)
    history = LossHistory(jnp.asarray(np.mean(at_every_t**2, 1), jnp.float32), ALL_SEEN.seen)
    t, weights = jitted_draw(keys(N), history)
    weighted = np.asarray(weights) * np.asarray(vlb(t))
    assert abs(weighted.mean() - at_every_t.mean()) < 5 * weighted.std() / np.sqrt(N)
    assert weighted.std() < 0.6 * at_every_t.std()


# The loss history


def test_the_history_averages_the_squared_losses_of_each_t():
    """The first mean is taken as it is, later ones weigh a tenth. A t not drawn keeps its mean."""
    steps = [
        ([0, 0, 3], [1.0, 3.0, 2.0]),
        ([0, 5, 5], [4.0, 1.0, 1.0]),
        ([3, 3, 3], [1.0, 2.0, 3.0]),
    ]
    history = LossHistory(jnp.zeros(T), jnp.zeros(T, jnp.int32))
    for t, losses in steps:
        history = jitted_record(history, jnp.array(t), jnp.array(losses))
    expected = np.zeros(T)
    expected[[0, 3, 5]] = 0.9 * 5 + 0.1 * 16, 0.9 * 4 + 0.1 * 14 / 3, 1
    np.testing.assert_allclose(history.mean_square, expected, rtol=1e-6)
    assert history.seen.tolist() == [2, 0, 0, 2, 0, 1, 0, 0]


def test_a_loss_with_a_nonfinite_square_is_left_out():
    for bad in (np.nan, np.inf, -np.inf, 1e30):
        history = jitted_record(ALL_SEEN, jnp.array([0, 1, 1]), jnp.array([bad, bad, 2.0]))
        mean_square = np.asarray(history.mean_square)[:2]
        expected = [25, 0.9 * 0.01 + 0.1 * 4]
        np.testing.assert_allclose(mean_square, expected, rtol=1e-5, err_msg=str(bad))
        assert np.asarray(history.seen)[:2].tolist() == [10, 11], bad


def test_without_a_history_no_t_is_drawn():
    batch = {"key": keys(2)}
    state = optax.sgd(0.1).init(jnp.ones(2))
    same, weight = importance.sample_timesteps(state, batch)
    assert same is batch
    assert float(weight) == 1
    assert importance.update_history(state, batch, jnp.ones(2), lambda tree: tree) is state


# The training step

OBJECTIVE = Objective(timesteps=T, beta_start=0.05, beta_end=0.8, timestep_sampling="importance")
BATCH = 16


def timed_loss(params, keys, batch):
    """A regression whose loss grows with the drawn timestep."""
    return (1 + batch["t"].astype(jnp.float32)) * linear_loss(params, keys, batch)


def fresh():
    """A state with a history in which every t was seen."""
    state = init_state(linear_params(), keep_losses(optax.sgd(0.01), T))
    seen = state._replace(opt_state=state.opt_state._replace(loss_history=ALL_SEEN))
    return jax.tree.map(jnp.copy, seen)


MAKE_STEP = partial(make_train_step, timed_loss, keep_losses(optax.sgd(0.01), T), Ema())
STEP = jax.jit(MAKE_STEP(None))


def train(state, start=0, stop=6, step=STEP, shard=lambda batch: batch):
    """Train by SGD from step `start` to `stop`. Return the state and the losses."""
    losses = []
    for i in range(start, stop):
        state, metrics = step(state, shard(linear_batch(i, BATCH)))
        losses.append(float(metrics["loss"]))
    return state, losses


@pytest.fixture(scope="module")
def single_device():
    """The state and the losses of training on one device."""
    return train(fresh())


@pytest.mark.parametrize("route", ["pmap", "jit"])
def test_eight_devices_draw_and_record_as_one_does(single_device, route):
    expected_state, expected_losses = single_device
    step = parallel.parallelize(MAKE_STEP, route)
    state, losses = train(parallel.replicate(fresh()), step=step, shard=parallel.shard)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    history = state.opt_state.loss_history
    expected_history = expected_state.opt_state.loss_history
    np.testing.assert_allclose(history.mean_square, expected_history.mean_square, rtol=1e-4)
    np.testing.assert_array_equal(history.seen, expected_history.seen)
    assert_close(state.params, expected_state.params, rtol=1e-4, atol=1e-5)


def test_a_resumed_run_draws_the_same_timesteps(single_device):
    """Bit for bit: all draws depend on arrays of the state and on the step alone."""
    expected_state, expected_losses = single_device
    half, first_losses = train(fresh(), stop=3)
    restored = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), half)
    state, second_losses = train(restored, 3)
    assert first_losses + second_losses == expected_losses
    assert_same(state, expected_state)


def test_a_step_weights_each_loss_and_records_it_unweighted():
    state = fresh()
    batch = linear_batch(0, BATCH)
    t, weights = jitted_draw(batch["key"], ALL_SEEN)
    losses = jax.jit(timed_loss)(state.params, batch["key"], batch | {"t": t})
    after, metrics = STEP(state, batch)
    expected_loss = np.mean(np.asarray(weights) * np.asarray(losses))
    np.testing.assert_allclose(metrics["loss"], expected_loss, rtol=1e-5)
    history = after.opt_state.loss_history
    expected_history = jitted_record(ALL_SEEN, t, losses)
    np.testing.assert_allclose(history.mean_square, expected_history.mean_square, rtol=1e-4)
    assert len(set(weights.tolist())) > 3


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_optimizer_of_a_recipe_records_losses_outside_of_accumulation(dtype):
    training = Training(steps=4, batch_size=BATCH, accumulation=2, dtype=dtype)
    settings = {"model": CONV_UNET, "data": Digits(), "training": training}
    tx = Config(**settings, objective=OBJECTIVE).make_optimizer(80)
    state = init_state(linear_params(), tx)
    step = jax.jit(make_train_step(timed_loss, tx))
    for i in range(3):
        state, _ = step(state, linear_batch(i, BATCH))
    history = optax.tree.get(state.opt_state, "loss_history")
    # Every micro-batch counts, although the second optimizer step is not complete.
    assert int(history.seen.max()) == 3
    assert int(state.step) == 1
    assert np.all(np.asarray(history.mean_square)[np.asarray(history.seen) > 0] > 0)
    plain = Config(**settings, objective=Objective(timesteps=T, beta_end=0.8)).make_optimizer(80)
    assert optax.tree.get(plain.init(state.params), "loss_history") is None


def test_importance_without_a_history_is_refused():
    """It trained with uniform timesteps, silently."""
    objective = Objective(timestep_sampling="importance")
    step = make_train_step(model_loss(CONV_UNET, objective), optax.sgd(0.1))
    state = jax.eval_shape(lambda: init_state(CONV_UNET.init(jax.random.key(0)), optax.sgd(0.1)))
    keys = jax.random.split(jax.random.key(0), 2)
    batch = {"image": np.zeros((2, *CONV_UNET.image_shape), np.float32), "key": keys}
    with pytest.raises(ValueError, match="need a history of losses: make the optimizer by"):
        jax.eval_shape(step, state, batch)
