"""Ancestral sampling over a Gaussian against its chain in float64, and S1's loop against NumPy."""

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.tree_util import Partial

from ddpm_jax import samplers
from ddpm_jax.diffusion.analytic import mixture_x0
from ddpm_jax.diffusion.grid import make_grid, spaced
from ddpm_jax.diffusion.prediction import make_denoiser
from ddpm_jax.diffusion.schedule import from_betas, linear
from ddpm_jax.samplers import initial_noise, sample, sample_in_chunks, sample_keys, step_noise
from ddpm_jax.samplers.ddpm import ddpm

SCHEDULE = from_betas(linear())
ALPHA_BAR = np.cumprod(1 - linear())
MU, STD = 0.3, 0.5
BATCH, SHAPE = 64, (12, 12, 1)
GAUSSIAN = make_denoiser(SCHEDULE, mixture_x0(SCHEDULE, jnp.full((1, *SHAPE), MU), STD), "x0", None)


def grid_of(steps, spacing="trailing", schedule=SCHEDULE):
    return make_grid(schedule, spaced(schedule.timesteps, steps, spacing))


def noise_and_keys(seed, count=BATCH):
    keys = sample_keys(seed, jnp.arange(count))
    return keys, initial_noise(keys, SHAPE)


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
        of_x0, of_xt = np.sqrt(after) * beta / (1 - here), np.sqrt(here / after) * (1 - after) / (1 - here)
        gain = STD**2 * np.sqrt(here) / (STD**2 * here + 1 - here)
        mean = of_x0 * (MU + gain * (mean - np.sqrt(here) * MU)) + of_xt * mean
        added = beta * (1 - after) / (1 - here) if variance == "fixed_small" else beta * (after < 1)
        var = (of_x0 * gain + of_xt) ** 2 * var + added
        states.append((mean, np.sqrt(var)))
    return np.array(states).T


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize(("steps", "spacing"), [(10, "trailing"), (25, "leading")])
def test_ancestral_sampling_has_the_moments_of_its_chain_at_every_state(variance, steps, spacing):
    keys, xT = noise_and_keys(2)
    grid = grid_of(steps, spacing)
    states = sample(keys, GAUSSIAN, ddpm(variance=variance), grid, xT, trajectory=True)
    assert_moments(states, *ancestral_chain(grid.t.tolist(), variance))


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("i", [0, 5, 9])
def test_one_ancestral_step_has_the_distribution_of_eq_7(variance, i):
    keys, grid = noise_and_keys(3)[0], grid_of(10)
    t, here = int(grid.t[i]), ALPHA_BAR[int(grid.t[i])]
    after = ALPHA_BAR[int(grid.t_next[i])] if i < 9 else 1.0
    xt = jnp.full((BATCH, *SHAPE), 0.8)
    x0 = gaussian_x0(t, 0.8)
    beta = 1 - here / after
    mean = (np.sqrt(after) * beta * x0 + np.sqrt(here / after) * (1 - after) * 0.8) / (1 - here)
    var = beta * (1 - after) / (1 - here) if variance == "fixed_small" else beta * (after < 1)
    x_next, memory = ddpm(variance=variance).step(keys, GAUSSIAN, xt, grid.row(i), ())
    assert memory == ()
    assert_moments(x_next[None], [mean], np.sqrt([var]))
    noise = step_noise(keys, grid.row(i), xt)
    np.testing.assert_allclose(x_next, mean + np.sqrt(var) * np.asarray(noise, float), atol=1e-5)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_the_last_ancestral_step_is_the_estimate_of_clean_data(variance):
    keys, xt = noise_and_keys(4, 4)
    row = grid_of(10).row(9)
    x_next, _ = ddpm(variance=variance).step(keys, GAUSSIAN, xt, row, ())
    np.testing.assert_allclose(x_next, GAUSSIAN(xt, row.t).x0, atol=1e-6)


def test_clip_sample_is_the_loop_of_s1():
    betas = linear(20, 1e-3, 0.5)
    schedule = from_betas(betas)
    keys, xT = noise_and_keys(7, 4)
    grid = grid_of(20, schedule=schedule)
    denoise = make_denoiser(schedule, lambda xt, t: 0.9 * xt + 0.2 * jnp.sin(3 * xt), "eps", None)
    sampler = ddpm(variance="fixed_large", clip_sample=1.0)
    states = sample(keys, denoise, sampler, grid, xT, trajectory=True)

    x, alpha, alpha_bar = np.asarray(xT, float), 1 - betas, np.cumprod(1 - betas)
    for i, t in enumerate(range(19, -1, -1)):
        eps = 0.9 * x + 0.2 * np.sin(3 * x)
        x = (x - (1 - alpha[t]) / np.sqrt(1 - alpha_bar[t]) * eps) / np.sqrt(alpha[t])
        if t > 0:
            x = x + np.sqrt(betas[t]) * np.asarray(step_noise(keys, grid.row(i), xT), float)
        x = np.clip(x, -1, 1)
        np.testing.assert_allclose(states[i + 1], x, atol=1e-4)
    assert jnp.max(jnp.abs(xT)) > 1
    assert jnp.max(jnp.abs(states[1:])) == 1


def test_another_clip_sample_does_not_recompile():
    keys, xT = noise_and_keys(0, 4)
    before = samplers._walk_jit._cache_size()
    for clip_sample in (1.0, 0.5):
        *_, x0 = sample_in_chunks(keys, GAUSSIAN, ddpm(clip_sample=clip_sample), grid_of(10), xT)
        assert jnp.max(jnp.abs(x0)) <= clip_sample
    assert samplers._walk_jit._cache_size() == before + 1


def test_a_wrong_variance_is_answered_by_those_there_are(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="'fixed_small' or 'fixed_large'"):
        samplers.make("ddpm", variance="nonsense")


def says_log_variance(log_var, xt, t):
    """A network for x0 that says a constant about the variance too."""
    return jnp.concatenate([jnp.full(xt.shape, MU), jnp.full(xt.shape, log_var)], -1)


@pytest.mark.parametrize("said", [-1.0, 0.3, 1.0])
@pytest.mark.parametrize("i", [0, 5, 9])
def test_learned_range_lies_between_the_fixed_variances_in_log(said, i):
    """Eq. 15 of Nichol & Dhariwal 2021, for the beta of the stride."""
    keys, xt = noise_and_keys(5)
    row = grid_of(10).row(i)
    here, after = ALPHA_BAR[int(row.t)], 1.0 if i == 9 else ALPHA_BAR[int(row.t_next)]
    beta = 1 - here / after
    small = beta * (1 - after) / (1 - here)
    variance = 0.0 if i == 9 else beta ** ((said + 1) / 2) * small ** ((1 - said) / 2)
    denoise = make_denoiser(SCHEDULE, Partial(says_log_variance, said), "x0", None)
    of_xt = np.sqrt(here / after) * (1 - after) / (1 - here)
    mean = np.sqrt(after) * beta / (1 - here) * MU + of_xt * np.asarray(xt, float)
    x_next, _ = ddpm(variance="learned_range").step(keys, denoise, xt, row, ())
    noise = np.asarray(step_noise(keys, row, xt), float)
    np.testing.assert_allclose(x_next, mean + np.sqrt(variance) * noise, atol=1e-5)


def test_learned_is_the_log_variance_itself():
    keys, xt = noise_and_keys(5)
    row = grid_of(10).row(4)
    steps = [
        ddpm(variance="learned").step(
            keys, make_denoiser(SCHEDULE, Partial(says_log_variance, log_var), "x0", None), xt, row, ()
        )[0]
        for log_var in (-200.0, np.log(0.09))
    ]
    np.testing.assert_allclose(steps[1] - steps[0], 0.3 * step_noise(keys, row, xt), atol=1e-5)


@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_a_network_that_says_no_variance_is_refused(variance):
    keys, xt = noise_and_keys(5, 2)
    with pytest.raises(ValueError, match="says nothing of the variance: use variance fixed_small or fixed_large"):
        ddpm(variance=variance).step(keys, GAUSSIAN, xt, grid_of(10).row(4), ())
