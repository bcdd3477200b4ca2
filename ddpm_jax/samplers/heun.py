"""Heun's method on the probability-flow ODE: Algorithm 1, Karras et al. 2022."""

import jax.numpy as jnp
from jax.tree_util import Partial

from ddpm_jax.samplers import Sampler, stateless_init
from ddpm_jax.samplers.euler import MIN_SIGNAL, euler_step, min_signal_for


def heun(*, compat: bool = False) -> Sampler:
    """Euler's step, then again with the mean of eps at both ends; the step to clean data stays Euler's.

    compat: as diffusers, which takes the slope also where almost no signal is left.
    """
    return Sampler(
        Partial(stateless_init), Partial(_step, min_signal_for(compat)), order=2, evaluations=2
    )


def _step(noise, keys, denoise, xt, row, state):
    return heun_step(denoise, row, *denoise(xt, row.t)[:2], noise), state


def heun_step(denoise, row, x0, eps, noise=MIN_SIGNAL):
    """x_next from x0 and eps at the row's level; on the last row the second evaluation has no weight."""
    x_euler = euler_step(row, x0, eps)
    eps_next = denoise(x_euler, row.t_next_clamped).eps
    return euler_step(
        row, x0, eps, jnp.where(jnp.isfinite(row.h), 0.5, 0) * (eps_next - eps), noise
    )
