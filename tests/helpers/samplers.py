"""Exact denoisers that share one pytree structure, and the naive loop over a sampler's steps.

jit compiles a program for each pytree structure and its shapes. All denoisers of `mixture` share
both, so all tests of a sampler share one program, whatever their data, schedule or limit of x0.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.analytic import mixture_x0
from ddpm_jax.diffusion.grid import make_grid, spaced
from ddpm_jax.diffusion.prediction import make_denoiser
from ddpm_jax.diffusion.schedule import from_betas, linear_betas

SCHEDULE = from_betas(linear_betas())
SHAPE = (1, 2, 1)
MEANS = np.array([[-0.7, 0.4], [0.2, -0.8], [0.9, 0.6]], np.float32).reshape(3, *SHAPE)
WEIGHTS = np.array([0.3, 0.4, 0.3], np.float32)
STD = 0.4


def mixture(means=MEANS, std=STD, *, schedule=SCHEDULE, clip_x0=1e6, weights=WEIGHTS):
    """The exact denoiser of three Gaussians, or of one Gaussian if the means are equal.

    The default `clip_x0` limits nothing: no x0 reaches 1e6.
    """
    means = jnp.asarray(np.broadcast_to(np.asarray(means, np.float32), MEANS.shape))
    network = mixture_x0(schedule, means, std, jnp.asarray(weights))
    return make_denoiser(schedule, network, "x0", clip_x0)


def grid_of(steps, spacing="trailing", schedule=SCHEDULE):
    """The grid of this number of steps."""
    return make_grid(schedule, spaced(schedule.timesteps, steps, spacing))


step = jax.jit(lambda sampler, *arguments: sampler.step(*arguments))
"""One jitted step of a sampler, compiled once for each kind of sampler."""
_init = jax.jit(lambda sampler, xT: sampler.init(xT))


def rows_of(grid):
    """Yield the rows of a grid, sliced by NumPy."""
    tables = [np.asarray(table) for table in grid[:-1]]
    for i in range(len(grid.i)):
        yield type(grid)(*(table[i] for table in tables), grid.schedule)


def naive_walk(sampler, keys, denoise, grid, xT):
    """Yield xt after each row, from one compiled step in a Python loop."""
    xt = xT
    state = _init(sampler, xT)
    for row in rows_of(grid):
        xt, state = step(sampler, keys, denoise, xt, row, state)
        yield xt
