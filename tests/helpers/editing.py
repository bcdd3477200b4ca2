"""A Gaussian, pictures and a mask of their left half, and the walks that tests of editing share."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from ddpm_jax import samplers
from ddpm_jax.diffusion.grid import make_grid, spaced
from ddpm_jax.diffusion.prediction import make_denoiser
from ddpm_jax.diffusion.schedule import from_betas, linear, per_example
from ddpm_jax.samplers import initial_noise, sample, sample_keys

SCHEDULE = from_betas(linear())
ALPHA_BAR = np.cumprod(1 - linear())
MU, STD = 0.3, 0.5
SHAPE = (4, 4, 1)
KEYS = sample_keys(0, jnp.arange(6))
NOISE = initial_noise(KEYS, SHAPE)
IMAGES = jnp.clip(0.5 * jax.random.normal(jax.random.key(5), (6, *SHAPE)), -1, 1)
LEFT = jnp.broadcast_to(jnp.arange(4)[None, None, :, None] < 2, (6, *SHAPE))


def grid_of(steps):
    return make_grid(SCHEDULE, spaced(1000, steps))


def gaussian_x0(xt, t):
    """E[x0 | xt] where every pixel of the data is N(MU, STD^2)."""
    signal, noise = per_example(SCHEDULE.at(t), xt)
    return MU + STD**2 * signal * (xt - signal * MU) / (STD**2 * signal**2 + noise**2)


def curved(weight, xt, t):
    """A network that mixes the pixels of a picture and is not linear."""
    return weight * jnp.tanh(xt + jnp.roll(xt, 1, 2)) + per_example(t, xt).astype(jnp.float32) / 2000


GAUSSIAN = make_denoiser(SCHEDULE, Partial(gaussian_x0), "x0", None)
CURVED = make_denoiser(SCHEDULE, Partial(curved, jnp.float32(0.6)), "x0")


def assert_moments(found, mean, std):
    """Sample mean and deviation within 5 standard errors, and rounding, of the exact ones."""
    found = np.asarray(found, float).ravel()
    assert abs(found.mean() - mean) <= 5 * std / np.sqrt(found.size) + 1e-5
    assert abs(found.std() - std) <= 5 * std / np.sqrt(2 * found.size) + 1e-5


def walk(edit, name="ddpm", steps=8, keys=KEYS):
    """The edited walk, as Diffusion.walk has it."""
    sampler, xT = samplers.make(name), initial_noise(keys, SHAPE)
    grid = edit.grid(grid_of(steps), sampler)
    return sample(keys, CURVED, edit.sampler(sampler), grid, edit.start(keys, CURVED, sampler, grid, xT))
