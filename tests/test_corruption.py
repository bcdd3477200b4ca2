"""S4's toy at its limits: no noise and nothing but noise, a perfect network, a network that says one thing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.corruption import Corruption, corrupt, corruption_loss, mixing_histories, uniform_noise
from ddpm_jax.diffusion import Sampling

SHAPE = (4, 4, 1)
KEYS = jax.random.split(jax.random.key(0), 8)
X0 = jax.random.uniform(jax.random.key(1), (8, *SHAPE))
NOISE = uniform_noise(KEYS, SHAPE)


def test_corrupt_mixes_by_the_amount():
    amounts = jnp.linspace(0.0, 1.0, 8)
    found = corrupt(X0, amounts, NOISE)
    np.testing.assert_array_equal(found[0], X0[0])
    np.testing.assert_array_equal(found[-1], NOISE[-1])
    for i in range(8):
        np.testing.assert_allclose(found[i], np.asarray(X0[i]) + i / 7 * np.asarray(NOISE[i] - X0[i]), atol=1e-6)


def test_noise_is_uniform_on_0_to_1_and_of_each_examples_key():
    noise = np.asarray(uniform_noise(jax.random.split(jax.random.key(2), 64), (16, 16, 1)), float)
    assert noise.min() >= 0
    assert noise.max() < 1
    n = noise.size
    assert abs(noise.mean() - 1 / 2) < 5 * np.sqrt(1 / 12 / n)
    assert abs(noise.var() - 1 / 12) < 5 * np.sqrt(1 / 180 / n)
    np.testing.assert_array_equal(uniform_noise(KEYS[2:5], SHAPE), NOISE[2:5])


@pytest.mark.parametrize("loss", [corruption_loss, Corruption().loss], ids=["function", "objective"])
def test_a_perfect_network_has_no_loss_and_one_off_by_a_tenth_its_square(loss):
    assert loss(KEYS, lambda xt, t: X0, X0).shape == (8,)
    np.testing.assert_array_equal(loss(KEYS, lambda xt, t: X0, X0), 0)
    np.testing.assert_allclose(loss(KEYS, lambda xt, t: X0 + 0.1, X0), 0.01, rtol=1e-4)


def test_the_identity_has_the_loss_of_a_uniform_amount():
    """E amount^2 E (noise - c)^2 = 1/3 (1/12 + (1/2 - c)^2)."""
    c, keys = 0.2, jax.random.split(jax.random.key(3), 2048)
    loss = np.asarray(corruption_loss(keys, lambda xt, t: xt, jnp.full((2048, *SHAPE), c)), float)
    assert abs(loss.mean() - (1 / 12 + (1 / 2 - c) ** 2) / 3) < 5 * loss.std() / np.sqrt(2048)


def test_the_loss_of_an_example_does_not_depend_on_how_the_batch_is_split():
    whole = corruption_loss(KEYS, lambda xt, t: 0.5 * xt, X0)
    halves = [corruption_loss(KEYS[part], lambda xt, t: 0.5 * xt, X0[part]) for part in (slice(4), slice(4, 8))]
    assert len(set(whole.tolist())) == 8
    np.testing.assert_array_equal(jnp.concatenate(halves), whole)


@pytest.mark.parametrize("steps", [1, 5])
def test_a_network_that_says_one_thing_is_reached_by_equal_parts(steps):
    states, predictions = mixing_histories(lambda xt, t: X0, NOISE, steps)
    assert states.shape == predictions.shape == (steps, *X0.shape)
    np.testing.assert_array_equal(predictions, jnp.broadcast_to(X0, predictions.shape))
    for i in range(steps):
        share = (i + 1) / steps
        np.testing.assert_allclose(states[i], (1 - share) * np.asarray(NOISE) + share * np.asarray(X0), atol=1e-6)
    np.testing.assert_array_equal(states[-1], X0)


def test_every_prediction_is_of_the_state_before_it():
    states, predictions = mixing_histories(lambda xt, t: xt**2, NOISE)
    x = np.asarray(NOISE, float)
    for i in range(5):
        np.testing.assert_allclose(predictions[i], x**2, atol=1e-6)
        x = x + (x**2 - x) / (5 - i)
        np.testing.assert_allclose(states[i], x, atol=1e-6)


@pytest.mark.parametrize("steps", [None, 2])
def test_the_walk_yields_noise_and_then_every_state(steps):
    network = jax.tree_util.Partial(lambda image, xt, t: image, X0)
    states = list(Corruption().walk(KEYS, network, SHAPE, Sampling(steps=steps), steps or 5))
    assert len(states) == (steps or 5) + 1
    np.testing.assert_array_equal(states[0], NOISE)
    np.testing.assert_allclose(states[1:], mixing_histories(network, NOISE, steps or 5)[0], atol=1e-6)


@pytest.mark.parametrize("steps", [-1, 0])
def test_less_than_one_step_is_refused(steps):
    with pytest.raises(ValueError, match=f"steps must be at least 1, not {steps}"):
        Corruption().steps(Sampling(steps=steps))


def test_noisy_shows_every_amount_and_predict_is_the_network():
    found, t = Corruption().noisy(KEYS, X0)
    np.testing.assert_array_equal(found, corrupt(X0, jnp.linspace(0.0, 1.0, 8), NOISE))
    np.testing.assert_array_equal(Corruption().predict(lambda xt, t: 2 * xt, found, t), 2 * found)


def test_pixels_are_in_0_to_1():
    assert Corruption.low == 0
