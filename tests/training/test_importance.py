"""t drawn by the losses: as often as Eq. 18 says, without bias, and the same on any number of devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.config import Config, Training
from ddpm_jax.data.digits import Digits
from ddpm_jax.devices import parallel
from ddpm_jax.diffusion.losses import vlb_loss
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.diffusion.schedule import from_betas
from ddpm_jax.models.conv_unet import ConvUNet
from ddpm_jax.training import importance
from ddpm_jax.training.ema import Ema
from ddpm_jax.training.importance import LossHistory, draw_times, keep_losses, observe, probabilities
from ddpm_jax.training.optimizer import make_optimizer
from ddpm_jax.training.step import example_keys, init_state, make_train_step, model_loss

T = 8
ROOTS = np.array([5.0, 0.1, 1.0, 2.0, 0.0, 3.0, 0.5, 0.4])
ALL_SEEN = LossHistory(jnp.asarray(ROOTS**2, jnp.float32), jnp.full(T, 10))
P = 0.999 * ROOTS / ROOTS.sum() + 0.001 / T


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def test_probabilities_are_eq_18_with_a_share_spread_evenly():
    np.testing.assert_allclose(probabilities(ALL_SEEN), P, rtol=1e-5)


@pytest.mark.parametrize(
    "history",
    [ALL_SEEN._replace(seen=ALL_SEEN.seen.at[4].set(9)), ALL_SEEN._replace(mean_square=jnp.zeros(T))],
    ids=["one t seen too seldom", "no loss"],
)
def test_probabilities_are_uniform_before_there_is_a_history(history):
    np.testing.assert_allclose(probabilities(history), 1 / T, rtol=1e-6)


def test_t_is_drawn_with_its_probability_from_the_examples_own_key():
    t, weights = draw_times(keys(20_000), ALL_SEEN)
    counts = np.bincount(t, minlength=T)
    assert np.all(np.abs(counts - 20_000 * P) < 5 * np.sqrt(20_000 * P))
    assert t.dtype == jnp.int32
    np.testing.assert_allclose(weights, 1 / (T * P[t]), rtol=1e-4)
    np.testing.assert_array_equal(draw_times(keys(20_000)[7:9], ALL_SEEN)[0], t[7:9])


def test_the_bound_is_estimated_without_bias_and_with_less_noise():
    """The weighted loss of drawn t has the mean of the loss at uniform t."""
    schedule, x0 = from_betas(np.linspace(0.05, 0.8, T)), 0.5 * jax.random.normal(jax.random.key(1), (8000, 2, 2, 1))
    vlb = jax.jit(lambda t: vlb_loss(keys(8000), schedule, lambda xt, t: 0.4 * xt, x0, "v", "fixed_small", t=t))
    every = np.stack([vlb(jnp.full(8000, t)) for t in range(T)])
    history = LossHistory(jnp.asarray(np.mean(every**2, 1), jnp.float32), jnp.full(T, 10))
    t, weights = draw_times(keys(8000), history)
    found = np.asarray(weights * vlb(t))
    assert abs(found.mean() - every.mean()) < 5 * found.std() / np.sqrt(8000)
    assert found.std() < 0.6 * every.std()


# What is remembered


def test_the_history_is_the_average_of_the_squares_of_each_t():
    """The first mean of a step counts whole, the later ones by a tenth; a t that was not drawn keeps what it has."""
    steps = [([0, 0, 3], [1.0, 3.0, 2.0]), ([0, 5, 5], [4.0, 1.0, 1.0]), ([3, 3, 3], [1.0, 2.0, 3.0])]
    history = LossHistory(jnp.zeros(T), jnp.zeros(T, jnp.int32))
    for t, losses in steps:
        history = observe(history, jnp.array(t), jnp.array(losses), lambda tree: tree)
    wanted = np.zeros(T)
    wanted[[0, 3, 5]] = 0.9 * 5 + 0.1 * 16, 0.9 * 4 + 0.1 * 14 / 3, 1
    np.testing.assert_allclose(history.mean_square, wanted, rtol=1e-6)
    assert history.seen.tolist() == [2, 0, 0, 2, 0, 1, 0, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_a_loss_that_is_not_finite_is_left_out(bad):
    """Nor is one whose square is not."""
    history = observe(ALL_SEEN, jnp.array([0, 1, 1]), jnp.array([bad, bad, 2.0]), lambda tree: tree)
    np.testing.assert_allclose(history.mean_square[:2], [25, 0.9 * 0.01 + 0.1 * 4], rtol=1e-5)
    assert history.seen[:2].tolist() == [10, 11]


def test_without_a_history_nothing_is_drawn():
    batch = {"key": keys(2)}
    state = optax.sgd(0.1).init(jnp.ones(2))
    same, weight = importance.draw(state, batch)
    assert same is batch
    assert float(weight) == 1
    assert importance.learn(state, batch, jnp.ones(2), lambda tree: tree) is state


# In the training step

MODEL = ConvUNet(image_size=4, channels=1, widths=(8,), time_embedding_dim=8, groups=4)
OBJECTIVE = Objective(timesteps=T, beta_start=0.05, beta_end=0.8, times="importance")
BATCH = 16


def batch_of(step):
    images = np.random.default_rng(step).uniform(-1, 1, (BATCH, *MODEL.image_shape)).astype(np.float32)
    return {"image": jnp.asarray(images), "key": example_keys(jax.random.key(0), step, jnp.arange(BATCH))}


def train(route, state=None, start=0, stop=6):
    """The state and the losses of some steps of SGD, starting from a history in which every t was seen."""
    tx = keep_losses(optax.sgd(0.05), T)
    make_step = partial(make_train_step, model_loss(MODEL, OBJECTIVE), tx, Ema())
    if state is None:
        state = init_state(MODEL.init(jax.random.key(0)), tx)
        state = state._replace(opt_state=state.opt_state._replace(loss_history=ALL_SEEN))
    step, place = jax.jit(make_step(None)), lambda batch: batch
    if route != "one device":
        step, place, state = parallel.spread(make_step, route), parallel.shard, parallel.replicate(state)
    losses = []
    for i in range(start, stop):
        state, metrics = step(state, place(batch_of(i)))
        losses.append(float(metrics["loss"]))
    return state, losses


@pytest.fixture(scope="module")
def alone():
    return train("one device")


@pytest.mark.parametrize("route", ["pmap", "jit"])
def test_eight_devices_draw_and_remember_as_one(alone, route):
    state, losses = train(route, jax.tree.map(jnp.copy, fresh()))
    np.testing.assert_allclose(losses, alone[1], rtol=1e-5)
    ours, theirs = state.opt_state.loss_history, alone[0].opt_state.loss_history
    np.testing.assert_allclose(ours.mean_square, theirs.mean_square, rtol=1e-4)
    np.testing.assert_array_equal(ours.seen, theirs.seen)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), state.params, alone[0].params)


def fresh():
    state = init_state(MODEL.init(jax.random.key(0)), keep_losses(optax.sgd(0.05), T))
    return state._replace(opt_state=state.opt_state._replace(loss_history=ALL_SEEN))


def test_a_resumed_run_goes_on_bit_for_bit(alone):
    """All that is drawn depends on arrays of the state, and on the step."""
    half, first = train("one device", stop=3)
    restored = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), half)
    state, second = train("one device", restored, 3)
    assert first + second == alone[1]
    jax.tree.map(np.testing.assert_array_equal, state, alone[0])


def test_a_step_weighs_each_loss_and_remembers_it_unweighted():
    state, tx, batch = fresh(), keep_losses(optax.sgd(0.05), T), batch_of(0)
    t, weights = draw_times(batch["key"], ALL_SEEN)
    losses = model_loss(MODEL, OBJECTIVE)(state.params, batch["key"], batch | {"t": t})
    after, metrics = jax.jit(make_train_step(model_loss(MODEL, OBJECTIVE), tx))(state, batch)
    np.testing.assert_allclose(metrics["loss"], np.mean(np.asarray(weights) * np.asarray(losses)), rtol=1e-5)
    wanted = observe(ALL_SEEN, t, losses, lambda tree: tree)
    np.testing.assert_allclose(after.opt_state.loss_history.mean_square, wanted.mean_square, rtol=1e-4)
    assert len(set(weights.tolist())) > 3


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_optimizer_of_a_recipe_keeps_losses_outside_of_all_else(dtype):
    training = Training(steps=4, batch_size=BATCH, accumulation=2, dtype=dtype)
    config = Config(model=MODEL, data=Digits(), objective=OBJECTIVE, training=training)
    tx = make_optimizer(config, 80)
    state = init_state(MODEL.init(jax.random.key(0)), tx)
    step = jax.jit(make_train_step(model_loss(MODEL, OBJECTIVE, dtype), tx))
    for i in range(3):
        state, _ = step(state, batch_of(i))
    history = optax.tree.get(state.opt_state, "loss_history")
    assert int(history.seen.max()) == 3  # of every micro-batch, though the second optimizer step is not done
    assert int(state.step) == 1
    assert bool(jnp.all(history.mean_square[history.seen > 0] > 0))
    plain = make_optimizer(
        Config(model=MODEL, data=Digits(), objective=Objective(timesteps=T, beta_end=0.8), training=training), 80
    )
    assert optax.tree.get(plain.init(state.params), "loss_history") is None
