"""Fixtures of the editing tests: a Gaussian, images, masks and jitted walks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from helpers.samplers import SCHEDULE, grid_of
from jax.tree_util import Partial

from ddpm_jax import samplers
from ddpm_jax.diffusion.prediction import make_denoiser
from ddpm_jax.diffusion.schedule import linear_betas, per_example
from ddpm_jax.samplers import initial_noise, sample, sample_keys

ALPHA_BAR = np.cumprod(1 - linear_betas())
MU = 0.3
STD = 0.5
SHAPE = (4, 6, 2)
KEYS = sample_keys(0, jnp.arange(6))
NOISE = initial_noise(KEYS, SHAPE)
_NUMBERS = np.random.default_rng(5).standard_normal((6, *SHAPE), np.float32)
IMAGES = jnp.asarray(np.clip(0.5 * _NUMBERS, -1, 1))
MASKS = (6, *SHAPE[:2], 1)
LEFT = jnp.asarray(np.broadcast_to(np.arange(6)[None, None, :, None] < 2, MASKS))
ALL = jnp.asarray(np.full(MASKS, True))
NOTHING = jnp.asarray(np.full(MASKS, False))


def signal_and_noise(t):
    """sqrt(alpha_bar) and sqrt(1 - alpha_bar) at a whole timestep, in float64."""
    return np.sqrt(ALPHA_BAR[int(t)]), np.sqrt(1 - ALPHA_BAR[int(t)])


def gaussian_x0(xt, t):
    """E[x0 | xt] where every pixel of the data is N(MU, STD^2)."""
    signal, noise = per_example(SCHEDULE.signal_and_noise(t), xt)
    return MU + STD**2 * signal * (xt - signal * MU) / (STD**2 * signal**2 + noise**2)


def curved(weight, xt, t):
    """A nonlinear network that mixes the pixels of an image."""
    mixed = weight * jnp.tanh(xt + jnp.roll(xt, 1, 2))
    return mixed + per_example(t, xt).astype(jnp.float32) / 2000


GAUSSIAN = make_denoiser(SCHEDULE, Partial(gaussian_x0), "x0", None)
CURVED = make_denoiser(SCHEDULE, Partial(curved, jnp.float32(0.6)), "x0")


def assert_moments(samples, mean, std):
    """Assert that mean and standard deviation agree within 5 standard errors and rounding."""
    samples = np.asarray(samples, float).ravel()
    assert abs(samples.mean() - mean) <= 5 * std / np.sqrt(samples.size) + 1e-5
    assert abs(samples.std() - std) <= 5 * std / np.sqrt(2 * samples.size) + 1e-5


@partial(jax.jit, static_argnames="name")
def start(keys, edit, grid, xT, name="ddpm"):
    """The start of an edit without inversion, jitted."""
    return edit.start(keys, CURVED, samplers.make(name), grid, xT)


def walk(edit, steps=8):
    """Draw edited images by ancestral sampling with the curved network."""
    sampler = samplers.make("ddpm")
    grid = edit.grid(grid_of(steps), sampler)
    return sample(KEYS, CURVED, edit.sampler(sampler), grid, start(KEYS, edit, grid, NOISE))
