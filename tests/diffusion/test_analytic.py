"""Closed-form networks against brute force: integrals on a grid, and the sums of Bayes' rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.analytic import gaussian_x0, mixture_x0
from ddpm_jax.diffusion.schedule import from_betas, linear_betas

SCHEDULE = from_betas(linear_betas())
ALPHA_BAR = np.cumprod(1 - linear_betas())
T = jnp.array([5, 300, 900])


def normal(x, mean, variance):
    return np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(variance)


def expectation(density, xt, alpha_bar):
    """E[x0 | xt] of one pixel, by summing over a fine grid of x0."""
    x0 = np.linspace(-6, 6, 40001)
    weight = density(x0) * normal(xt, np.sqrt(alpha_bar) * x0, 1 - alpha_bar)
    return np.sum(weight * x0) / np.sum(weight)


@pytest.mark.parametrize("std", [0.2, 0.7])
def test_a_mixture_is_the_integral_of_bayes_rule(std):
    means, weights, xt = (
        np.array([-0.8, 0.1, 0.9]),
        np.array([0.2, 0.5, 0.3]),
        np.array([0.4, -1.3, 0.7]),
    )

    def density(x0):
        return sum(w * normal(x0, m, std**2) for w, m in zip(weights, means, strict=True))

    shape = (3, 1, 1, 1)
    network = mixture_x0(
        SCHEDULE,
        jnp.asarray(means.reshape(shape), jnp.float32),
        std,
        jnp.asarray(weights, jnp.float32),
    )
    wanted = [expectation(density, x, ALPHA_BAR[t]) for x, t in zip(xt, T, strict=True)]
    found = network(jnp.asarray(xt.reshape(shape), jnp.float32), T)
    np.testing.assert_allclose(found.reshape(-1), wanted, atol=2e-5)


def test_a_finite_set_is_the_weighted_mean_of_its_pictures():
    pictures, xt = (
        np.random.default_rng(seed).normal(size=(n, 2, 3, 1)) for seed, n in ((0, 5), (1, 3))
    )
    found = mixture_x0(SCHEDULE, jnp.asarray(pictures, jnp.float32))(
        jnp.asarray(xt, jnp.float32), T
    )
    for i, t in enumerate(T):
        off = ((xt[i] - np.sqrt(ALPHA_BAR[t]) * pictures) ** 2).sum((1, 2, 3))
        weight = np.exp(-(off - off.min()) / (2 * (1 - ALPHA_BAR[t])))
        np.testing.assert_allclose(
            found[i], np.tensordot(weight / weight.sum(), pictures, 1), atol=2e-5
        )


def test_a_gaussian_is_the_regression_of_its_joint_distribution():
    rng = np.random.default_rng(2)
    root, mean, xt = (
        rng.normal(size=(6, 6)) / 2,
        rng.normal(size=(2, 3, 1)),
        rng.normal(size=(3, 2, 3, 1)),
    )
    covariance = root @ root.T
    network = gaussian_x0(SCHEDULE, *(jnp.asarray(x, jnp.float32) for x in (mean, covariance)))
    found = jax.jit(network)(jnp.asarray(xt, jnp.float32), T)
    for i, t in enumerate(T):
        signal, noise = np.sqrt(ALPHA_BAR[t]), 1 - ALPHA_BAR[t]
        of_xt = signal**2 * covariance + noise * np.eye(6)
        off = (xt[i] - signal * mean).reshape(6)
        wanted = mean.reshape(6) + signal * covariance @ np.linalg.solve(of_xt, off)
        np.testing.assert_allclose(found[i].reshape(6), wanted, atol=1e-4)


def test_a_mixture_of_one_is_a_gaussian():
    mean = jnp.full((1, 2, 2, 1), 0.3)
    xt = jax.random.normal(jax.random.key(0), (3, 2, 2, 1))
    one, other = mixture_x0(SCHEDULE, mean, 0.5), gaussian_x0(SCHEDULE, mean[0], 0.25 * jnp.eye(4))
    np.testing.assert_allclose(one(xt, T), other(xt, T), atol=1e-5)
