"""DPM-Solver++(2S), one step at a time: Algorithm 1, Lu et al. 2022 (DPM-Solver++)."""

import jax.numpy as jnp
from jax.tree_util import Partial

from ddpm_jax.samplers import Sampler, no_memory
from ddpm_jax.samplers.ddim import transfer


def dpmpp_2s() -> Sampler:
    """DDIM to the middle of the step in log SNR (r = 1/2), then over the whole step with the x0 found there.

    The step to clean data stays DDIM's.
    """
    return Sampler(Partial(no_memory), Partial(_step), order=2, evaluations=2)


def _step(keys, denoise, xt, row, memory):
    x0, eps, _ = denoise(xt, row.t)
    finite = jnp.isfinite(row.h)
    middle = row.starting_at(jnp.where(finite, row.log_snr + row.h, 0))
    x_middle = middle.sqrt_alpha_bar * x0 + middle.sqrt_one_minus_alpha_bar * eps
    x0 = jnp.where(finite, denoise(x_middle, middle.t).x0, x0)
    return transfer(row, xt, x0), memory
