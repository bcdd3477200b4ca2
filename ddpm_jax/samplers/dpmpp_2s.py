"""DPM-Solver++(2S), one step at a time: Algorithm 1, Lu et al. 2022 (DPM-Solver++)."""

import jax.numpy as jnp
from jax.tree_util import Partial

from ddpm_jax.samplers import Sampler, stateless_init
from ddpm_jax.samplers.ddim import ddim_step, ddim_step_by


def dpmpp_2s(*, compat: bool = False) -> Sampler:
    """Take a DDIM step to the middle in log SNR (r = 1/2), then the whole step with the x0 there.

    The step to clean data is the DDIM step.
    compat: as in diffusers, two rows of the grid make one step, and its middle is where the first
    row ends.
    """
    if compat:
        return Sampler(Partial(_init_begin), Partial(_half_step), order=2)
    return Sampler(Partial(stateless_init), Partial(_step), order=2, evaluations=2)


def _step(keys, denoise, xt, row, state):
    x0, eps, _ = denoise(xt, row.t)
    finite = jnp.isfinite(row.h)
    middle = row.from_level(jnp.where(finite, row.log_snr + row.h, 0))
    x_middle = middle.sqrt_alpha_bar * x0 + middle.sqrt_one_minus_alpha_bar * eps
    x0 = jnp.where(finite, denoise(x_middle, middle.t).x0, x0)
    return ddim_step(row, xt, x0), state


def _init_begin(xT):
    """The state: x, x0, log SNR / 2 (-inf if empty) and sqrt(1 - alpha_bar) at the step's start."""
    return xT, xT, jnp.full((), -jnp.inf, xT.dtype), jnp.ones((), xT.dtype)


def _half_step(keys, denoise, xt, row, state):
    """Take a DDIM step to the middle on even rows, and the whole step on odd rows."""
    x0 = denoise(xt, row.t).x0
    x_begin, x0_begin, lambda_begin, std_begin = state
    lambda_t = row.log_snr / 2
    completes = (row.i % 2 == 1) & jnp.isfinite(lambda_begin) & jnp.isfinite(row.h)
    h = jnp.where(completes, lambda_t + row.h - lambda_begin, 1)
    r = jnp.where(completes, (lambda_t - lambda_begin) / h, 1)
    D = x0_begin + (x0 - x0_begin) / (2 * r)  # D of Algorithm 1
    std_ratio = row.sqrt_one_minus_alpha_bar_next / std_begin
    x_whole = ddim_step_by(std_ratio, row.sqrt_alpha_bar_next, h, x_begin, D)
    x_next = jnp.where(completes, x_whole, ddim_step(row, xt, x0))
    return x_next, (xt, x0, lambda_t, row.sqrt_one_minus_alpha_bar)
