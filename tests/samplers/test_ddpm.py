"""Ancestral sampling over a Gaussian against its chain in float64, and against NumPy's loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.samplers import SCHEDULE, SHAPE, grid_of, mixture, naive_walk, rows_of, step
from jax.tree_util import Partial

from ddpm_jax.diffusion.prediction import make_denoiser
from ddpm_jax.diffusion.schedule import from_betas, linear_betas
from ddpm_jax.samplers import initial_noise, sample_keys, step_noise
from ddpm_jax.samplers.ddpm import ddpm

ALPHA_BAR = np.cumprod(1 - linear_betas())
MU, STD = 0.3, 0.5
COUNT = 2304
GAUSSIAN = mixture(MU, STD)
KEYS = sample_keys(2, jnp.arange(COUNT))
XT = initial_noise(KEYS, SHAPE)
ROWS = list(rows_of(grid_of(10)))
FIXED = pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])


def noise_of(row):
    return np.asarray(step_noise(KEYS, row, XT), float)


def gaussian_x0(t, xt):
    """E[x0 | xt] in float64."""
    here = ALPHA_BAR[t]
    return MU + STD**2 * np.sqrt(here) * (xt - np.sqrt(here) * MU) / (STD**2 * here + 1 - here)


def assert_moments(states, means, stds):
    """Each state's sample mean and deviation within 5 standard errors, and rounding, of the exact ones."""
    states = np.asarray(states, float).reshape(len(means), -1)
    n = states.shape[1]
    assert np.all(np.abs(states.mean(1) - means) <= 5 * stds / np.sqrt(n) + 1e-5)
    assert np.all(np.abs(states.std(1) - stds) <= 5 * stds / np.sqrt(2 * n) + 1e-5)


def ancestral_chain(times, variance):
    """Exact mean and deviation of every state of Algorithm 2 over a Gaussian, from x_T ~ N(0, 1), in float64."""
    mean, var, states = 0.0, 1.0, [(0.0, 1.0)]
    for i, t in enumerate(times):
        here = ALPHA_BAR[t]
        after = ALPHA_BAR[times[i + 1]] if i + 1 < len(times) else 1.0
        beta = 1 - here / after
        of_x0, of_xt = (
            np.sqrt(after) * beta / (1 - here),
            np.sqrt(here / after) * (1 - after) / (1 - here),
        )
        gain = STD**2 * np.sqrt(here) / (STD**2 * here + 1 - here)
        mean = of_x0 * (MU + gain * (mean - np.sqrt(here) * MU)) + of_xt * mean
        added = beta * (1 - after) / (1 - here) if variance == "fixed_small" else beta * (after < 1)
        var = (of_x0 * gain + of_xt) ** 2 * var + added
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
    here, after = ALPHA_BAR[row.t], ALPHA_BAR[row.t_next] if i < 9 else 1.0
    xt = np.full(XT.shape, 0.8, np.float32)
    x0 = gaussian_x0(row.t, 0.8)
    beta = 1 - here / after
    mean = (np.sqrt(after) * beta * x0 + np.sqrt(here / after) * (1 - after) * 0.8) / (1 - here)
    var = beta * (1 - after) / (1 - here) if variance == "fixed_small" else beta * (after < 1)
    x_next, memory = step(ddpm(variance=variance), KEYS, GAUSSIAN, xt, row, ())
    assert memory == ()
    assert_moments(x_next[None], [mean], np.sqrt([var]))
    np.testing.assert_allclose(x_next, mean + np.sqrt(var) * noise_of(row), atol=1e-5)


estimate = jax.jit(lambda xt, t: GAUSSIAN(xt, t).x0)


@FIXED
def test_the_last_ancestral_step_is_the_estimate_of_clean_data(variance):
    x_next, _ = step(ddpm(variance=variance), KEYS, GAUSSIAN, XT, ROWS[9], ())
    np.testing.assert_allclose(x_next, estimate(XT, ROWS[9].t), atol=1e-6)


def test_clip_sample_limits_each_state_of_the_loop_and_is_traced():
    """Algorithm 2 with beta as its variance, each x_next limited."""
    betas = linear_betas(20, 1e-3, 0.5)
    schedule = from_betas(betas)
    grid = grid_of(20, schedule=schedule)
    denoise = make_denoiser(schedule, lambda xt, t: 0.9 * xt + 0.2 * jnp.sin(3 * xt), "eps", None)
    noises = [noise_of(row) for row in rows_of(grid)]
    alpha, alpha_bar = 1 - betas, np.cumprod(1 - betas)
    assert np.max(np.abs(XT)) > 1
    count = step._cache_size()
    for limit in (1.0, 0.5):
        x, sampler = np.asarray(XT, float), ddpm(variance="fixed_large", clip_sample=limit)
        largest = []
        for i, state in enumerate(naive_walk(sampler, KEYS, denoise, grid, XT)):
            t = 19 - i
            eps = 0.9 * x + 0.2 * np.sin(3 * x)
            x = (x - (1 - alpha[t]) / np.sqrt(1 - alpha_bar[t]) * eps) / np.sqrt(alpha[t])
            x = np.clip(x + np.sqrt(betas[t]) * noises[i] if t > 0 else x, -limit, limit)
            np.testing.assert_allclose(state, x, atol=1e-4, err_msg=f"t = {t}, limit {limit}")
            largest.append(np.max(np.abs(state)))
        assert max(largest) == limit
    assert step._cache_size() == count + 1


def says_log_variance(log_var, xt, t):
    """A network for x0 that says a constant about the variance too."""
    return jnp.concatenate([jnp.full(xt.shape, MU), jnp.full(xt.shape, log_var)], -1)


def saying(log_var):
    return make_denoiser(SCHEDULE, Partial(says_log_variance, log_var), "x0", None)


@pytest.mark.parametrize("said", [-1.0, 0.3, 1.0])
@pytest.mark.parametrize("i", [0, 5, 9])
def test_learned_range_lies_between_the_fixed_variances_in_log(said, i):
    """Eq. 15 of Nichol & Dhariwal 2021, for the beta of the stride."""
    row = ROWS[i]
    here, after = ALPHA_BAR[row.t], 1.0 if i == 9 else ALPHA_BAR[row.t_next]
    beta = 1 - here / after
    small = beta * (1 - after) / (1 - here)
    variance = 0.0 if i == 9 else beta ** ((said + 1) / 2) * small ** ((1 - said) / 2)
    of_xt = np.sqrt(here / after) * (1 - after) / (1 - here)
    mean = np.sqrt(after) * beta / (1 - here) * MU + of_xt * np.asarray(XT, float)
    x_next, _ = step(ddpm(variance="learned_range"), KEYS, saying(said), XT, row, ())
    np.testing.assert_allclose(x_next, mean + np.sqrt(variance) * noise_of(row), atol=1e-5)


def test_learned_is_the_log_variance_itself():
    sampler, row = ddpm(variance="learned"), ROWS[4]
    denoisers = saying(-200.0), saying(float(np.log(0.09)))
    none, some = (step(sampler, KEYS, denoise, XT, row, ())[0] for denoise in denoisers)
    np.testing.assert_allclose(some - none, 0.3 * noise_of(row), atol=1e-5)


@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_a_network_that_says_no_variance_is_refused(variance):
    with pytest.raises(
        ValueError, match="says nothing of the variance: use variance fixed_small or fixed_large"
    ):
        step(ddpm(variance=variance), KEYS, GAUSSIAN, XT, ROWS[4], ())
