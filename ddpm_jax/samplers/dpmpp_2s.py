"""DPM-Solver++(2S), one step at a time: Algorithm 1, Lu et al. 2022 (DPM-Solver++)."""

import jax.numpy as jnp
from jax.tree_util import Partial

from ddpm_jax.samplers import Sampler, stateless_init
from ddpm_jax.samplers.ddim import ddim_step, ddim_step_by


def dpmpp_2s(*, compat: bool = False) -> Sampler:
    """DDIM to the middle of the step in log SNR (r = 1/2), then over the whole step with the x0 found there.

    The step to clean data stays DDIM's. compat: as diffusers, which makes one step of two rows of the grid, the first
    of them to its middle, wherever that lies.
    """
    if compat:
        return Sampler(Partial(_nowhere), Partial(_half_step), order=2)
    return Sampler(Partial(stateless_init), Partial(_step), order=2, evaluations=2)


def _step(keys, denoise, xt, row, state):
    x0, eps, _ = denoise(xt, row.t)
    finite = jnp.isfinite(row.h)
    middle = row.from_level(jnp.where(finite, row.log_snr + row.h, 0))
    x_middle = middle.sqrt_alpha_bar * x0 + middle.sqrt_one_minus_alpha_bar * eps
    x0 = jnp.where(finite, denoise(x_middle, middle.t).x0, x0)
    return ddim_step(row, xt, x0), state


def _nowhere(xT):
    """Where a step began: x, its x0, its log SNR / 2 and its deviation of noise."""
    return xT, xT, jnp.full((), -jnp.inf, xT.dtype), jnp.ones((), xT.dtype)


def _half_step(keys, denoise, xt, row, state):
    x0, (x_begin, x0_begin, begin, std) = denoise(xt, row.t).x0, state
    here = row.log_snr / 2
    second = (row.i % 2 == 1) & jnp.isfinite(begin) & jnp.isfinite(row.h)
    h = jnp.where(second, here + row.h - begin, 1)
    r = jnp.where(second, (here - begin) / h, 1)
    mean = x0_begin + (x0 - x0_begin) / (2 * r)
    x_whole = ddim_step_by(
        row.sqrt_one_minus_alpha_bar_next / std, row.sqrt_alpha_bar_next, h, x_begin, mean
    )
    x_next = jnp.where(second, x_whole, ddim_step(row, xt, x0))
    return x_next, (xt, x0, here, row.sqrt_one_minus_alpha_bar)
