"""Closed-form networks match numerical integration and the sums of Bayes' rule."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from ddpm_jax.diffusion.analytic import gaussian_x0, mixture_x0
from ddpm_jax.diffusion.schedule import from_betas, linear_betas

SCHEDULE = from_betas(linear_betas())
ALPHA_BAR = np.cumprod(1 - linear_betas())
T = np.array([5, 300, 900], np.int32)


@jax.jit
def apply(network, xt, t):
    """The output of a network, as one program."""
    return network(xt, t)


def gaussian_density(x, mean, variance):
    return np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(variance)


def expected_x0(density, xt, alpha_bar):
    """E[x0 | xt] of one pixel, summed over a fine grid of x0."""
    x0 = np.linspace(-6, 6, 40001)
    weight = density(x0) * gaussian_density(xt, np.sqrt(alpha_bar) * x0, 1 - alpha_bar)
    return np.sum(weight * x0) / np.sum(weight)


@pytest.mark.parametrize("std", [0.2, 0.7])
def test_mixture_x0_matches_numerical_integration(std):
    means = np.array([-0.8, 0.1, 0.9])
    weights = np.array([0.2, 0.5, 0.3])
    xt = np.array([0.4, -1.3, 0.7])

    def density(x0):
        return sum(w * gaussian_density(x0, m, std**2) for w, m in zip(weights, means, strict=True))

    shape = (3, 1, 1, 1)
    mean_images = jnp.asarray(means.reshape(shape), jnp.float32)
    network = mixture_x0(SCHEDULE, mean_images, std, jnp.asarray(weights, jnp.float32))
    x0 = apply(network, np.float32(xt.reshape(shape)), T)
    expected = [expected_x0(density, x, ALPHA_BAR[t]) for x, t in zip(xt, T, strict=True)]
    np.testing.assert_allclose(np.ravel(x0), expected, atol=2e-5)


def test_mixture_x0_with_std_0_is_the_weighted_mean_of_its_images():
    images = np.random.default_rng(0).normal(size=(5, 2, 3, 1))
    xt = np.random.default_rng(1).normal(size=(3, 2, 3, 1))
    network = mixture_x0(SCHEDULE, jnp.asarray(images, jnp.float32))
    x0 = np.asarray(apply(network, np.float32(xt), T))
    for i, t in enumerate(T):
        distance = ((xt[i] - np.sqrt(ALPHA_BAR[t]) * images) ** 2).sum((1, 2, 3))
        weight = np.exp(-(distance - distance.min()) / (2 * (1 - ALPHA_BAR[t])))
        expected = np.tensordot(weight / weight.sum(), images, 1)
        np.testing.assert_allclose(x0[i], expected, atol=2e-5)


def test_gaussian_x0_is_the_conditional_mean_of_the_joint_distribution():
    rng = np.random.default_rng(2)
    root = rng.normal(size=(6, 6)) / 2
    mean = rng.normal(size=(2, 3, 1))
    xt = rng.normal(size=(3, 2, 3, 1))
    covariance = root @ root.T
    network = gaussian_x0(SCHEDULE, *(jnp.asarray(x, jnp.float32) for x in (mean, covariance)))
    x0 = np.asarray(apply(network, np.float32(xt), T))
    for i, t in enumerate(T):
        signal = np.sqrt(ALPHA_BAR[t])
        xt_covariance = signal**2 * covariance + (1 - ALPHA_BAR[t]) * np.eye(6)
        deviation = (xt[i] - signal * mean).reshape(6)
        gain = signal * covariance
        expected = mean.reshape(6) + gain @ np.linalg.solve(xt_covariance, deviation)
        np.testing.assert_allclose(np.ravel(x0[i]), expected, atol=1e-4)


def test_mixture_x0_of_one_component_matches_gaussian_x0():
    mean = np.full((1, 2, 2, 1), 0.3, np.float32)
    xt = np.random.default_rng(0).standard_normal((3, 2, 2, 1), np.float32)
    mixture = mixture_x0(SCHEDULE, jnp.asarray(mean), 0.5)
    covariance = jnp.asarray(0.25 * np.eye(4), jnp.float32)
    gaussian = gaussian_x0(SCHEDULE, jnp.asarray(mean[0]), covariance)
    np.testing.assert_allclose(apply(mixture, xt, T), apply(gaussian, xt, T), atol=1e-5)


def test_means_of_integers_are_refused(monkeypatch):
    """Their uniform weights would be 0."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=r"means must be floats, not uint8"):
        mixture_x0(SCHEDULE, jnp.zeros((2, 4, 4, 1), jnp.uint8))
