"""Ancestral sampling of a Gaussian against its exact chain in float64, and against a NumPy loop."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from helpers.refusals import assert_refused
from helpers.samplers import SCHEDULE, SHAPE, grid_of, mixture, naive_walk, rows_of, step
from jax.tree_util import Partial

from ddpm_jax.diffusion.prediction import make_denoiser
from ddpm_jax.diffusion.schedule import from_betas, linear_betas
from ddpm_jax.samplers import initial_noise, sample_keys, step_noise
from ddpm_jax.samplers.ddpm import ddpm

ALPHA_BAR = np.cumprod(1 - linear_betas())
MU, STD = 0.3, 0.5
NUM_IMAGES = 2304
GAUSSIAN = mixture(MU, STD)
KEYS = sample_keys(2, jnp.arange(NUM_IMAGES))
XT = initial_noise(KEYS, SHAPE)
ROWS = list(rows_of(grid_of(10)))
FIXED = pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])


def noise_at(row):
    return np.asarray(step_noise(KEYS, row, XT), float)


def gaussian_x0(t, xt):
    """E[x0 | xt] in float64."""
    ab = ALPHA_BAR[t]
    return MU + STD**2 * np.sqrt(ab) * (xt - np.sqrt(ab) * MU) / (STD**2 * ab + 1 - ab)


def assert_moments(states, means, stds):
    """Each state's mean and deviation are exact up to 5 standard errors and rounding."""
    states = np.asarray(states, float).reshape(len(means), -1)
    n = states.shape[1]
    assert np.all(np.abs(states.mean(1) - means) <= 5 * stds / np.sqrt(n) + 1e-5)
    assert np.all(np.abs(states.std(1) - stds) <= 5 * stds / np.sqrt(2 * n) + 1e-5)


def reverse_step(ab, ab_next, variance):
    """Coefficients of x0 and xt in the posterior mean (Eq. 7), and the variance of the step."""
    beta = 1 - ab / ab_next
    x0_coefficient = np.sqrt(ab_next) * beta / (1 - ab)
    xt_coefficient = np.sqrt(ab / ab_next) * (1 - ab_next) / (1 - ab)
    if variance == "fixed_small":
        return x0_coefficient, xt_coefficient, beta * (1 - ab_next) / (1 - ab)
    return x0_coefficient, xt_coefficient, beta * (ab_next < 1)


def ancestral_chain(timesteps, variance):
    """The exact mean and deviation (2, states) of Algorithm 2 over a Gaussian, in float64.

    The first state is x_T ~ N(0, 1).
    """
    mean = 0.0
    var = 1.0
    states = [(mean, var)]
    for t, ab_next in zip(timesteps, [*ALPHA_BAR[timesteps[1:]], 1.0], strict=True):
        ab = ALPHA_BAR[t]
        x0_coefficient, xt_coefficient, step_var = reverse_step(ab, ab_next, variance)
        gain = STD**2 * np.sqrt(ab) / (STD**2 * ab + 1 - ab)
        x0_mean = MU + gain * (mean - np.sqrt(ab) * MU)
        mean = x0_coefficient * x0_mean + xt_coefficient * mean
        var = (x0_coefficient * gain + xt_coefficient) ** 2 * var + step_var
        states.append((mean, np.sqrt(var)))
    return np.array(states).T


@FIXED
@pytest.mark.parametrize(("steps", "spacing"), [(10, "trailing"), (25, "leading")])
def test_ancestral_sampling_has_the_moments_of_its_chain_at_every_state(variance, steps, spacing):
    grid = grid_of(steps, spacing)
    states = [XT, *naive_walk(ddpm(variance=variance), KEYS, GAUSSIAN, grid, XT)]
    assert_moments(states, *ancestral_chain(grid.t.tolist(), variance))


@FIXED
@pytest.mark.parametrize("i", [0, 5, 9])
def test_one_ancestral_step_has_the_distribution_of_eq_7(variance, i):
    row = ROWS[i]
    ab_next = ALPHA_BAR[row.t_next] if i < 9 else 1.0
    xt = np.full(XT.shape, 0.8, np.float32)
    x0 = gaussian_x0(row.t, 0.8)
    x0_coefficient, xt_coefficient, var = reverse_step(ALPHA_BAR[row.t], ab_next, variance)
    mean = x0_coefficient * x0 + xt_coefficient * 0.8
    x_next, state = step(ddpm(variance=variance), KEYS, GAUSSIAN, xt, row, ())
    assert state == ()
    assert_moments(x_next[None], [mean], np.sqrt([var]))
    np.testing.assert_allclose(x_next, mean + np.sqrt(var) * noise_at(row), atol=1e-5)


estimated_x0 = jax.jit(lambda xt, t: GAUSSIAN(xt, t).x0)


@FIXED
def test_the_last_ancestral_step_returns_the_estimated_x0(variance):
    x_next, _ = step(ddpm(variance=variance), KEYS, GAUSSIAN, XT, ROWS[9], ())
    np.testing.assert_allclose(x_next, estimated_x0(XT, ROWS[9].t), atol=1e-6)


def test_a_clip_sample_that_is_no_bound_is_refused(monkeypatch):
    """False, as in diffusers' configs, would clip every state to 0."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    message = "clip_sample must be a bound above 0, or None for none, not"
    assert_refused(lambda bound: ddpm(clip_sample=bound), [(b, message) for b in (-1.0, 0, False)])


def test_clip_sample_limits_each_state_and_is_traced():
    """The expected states are Algorithm 2 with variance beta, and each x_next clipped."""
    betas = linear_betas(20, 1e-3, 0.5)
    schedule = from_betas(betas)
    grid = grid_of(20, schedule=schedule)
    denoise = make_denoiser(schedule, lambda xt, t: 0.9 * xt + 0.2 * jnp.sin(3 * xt), "eps", None)
    noises = [noise_at(row) for row in rows_of(grid)]
    alpha = 1 - betas
    alpha_bar = np.cumprod(1 - betas)
    assert np.max(np.abs(XT)) > 1
    num_programs = step._cache_size()
    for limit in (1.0, 0.5):
        x = np.asarray(XT, float)
        sampler = ddpm(variance="fixed_large", clip_sample=limit)
        largest = []
        for i, state in enumerate(naive_walk(sampler, KEYS, denoise, grid, XT)):
            t = 19 - i
            eps = 0.9 * x + 0.2 * np.sin(3 * x)
            x = (x - (1 - alpha[t]) / np.sqrt(1 - alpha_bar[t]) * eps) / np.sqrt(alpha[t])
            x = np.clip(x + np.sqrt(betas[t]) * noises[i] if t > 0 else x, -limit, limit)
            np.testing.assert_allclose(state, x, atol=1e-4, err_msg=f"t = {t}, limit {limit}")
            largest.append(np.max(np.abs(state)))
        assert max(largest) == limit
    assert step._cache_size() == num_programs + 1


def constant_network(log_var, xt, t):
    """A network with constant x0 and constant output for the log variance."""
    return jnp.concatenate([jnp.full(xt.shape, MU), jnp.full(xt.shape, log_var)], -1)


def learned_denoiser(log_var):
    return make_denoiser(SCHEDULE, Partial(constant_network, log_var), "x0", None)


@pytest.mark.parametrize("log_var", [-1.0, 0.3, 1.0])
@pytest.mark.parametrize("i", [0, 5, 9])
def test_learned_range_lies_between_the_fixed_variances_in_log(log_var, i):
    """Eq. 15 of Nichol & Dhariwal 2021, for the beta of the stride."""
    row = ROWS[i]
    ab = ALPHA_BAR[row.t]
    ab_next = ALPHA_BAR[row.t_next] if i < 9 else 1.0
    x0_coefficient, xt_coefficient, small = reverse_step(ab, ab_next, "fixed_small")
    beta = 1 - ab / ab_next
    variance = beta ** ((log_var + 1) / 2) * small ** ((1 - log_var) / 2) if i < 9 else 0.0
    mean = x0_coefficient * MU + xt_coefficient * np.asarray(XT, float)
    denoise = learned_denoiser(log_var)
    x_next, _ = step(ddpm(variance="learned_range"), KEYS, denoise, XT, row, ())
    np.testing.assert_allclose(x_next, mean + np.sqrt(variance) * noise_at(row), atol=1e-5)


def test_learned_reads_the_log_variance_itself():
    sampler = ddpm(variance="learned")
    row = ROWS[4]
    without_noise, _ = step(sampler, KEYS, learned_denoiser(-200.0), XT, row, ())
    with_noise, _ = step(sampler, KEYS, learned_denoiser(float(np.log(0.09))), XT, row, ())
    np.testing.assert_allclose(with_noise - without_noise, 0.3 * noise_at(row), atol=1e-5)


@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_a_network_without_learned_variance_is_refused(variance):
    message = "does not predict the variance: use variance fixed_small or fixed_large"
    with pytest.raises(ValueError, match=message):
        step(ddpm(variance=variance), KEYS, GAUSSIAN, XT, ROWS[4], ())
