"""Heun's method on the probability-flow ODE: Algorithm 1, Karras et al. 2022."""

import jax.numpy as jnp
from jax.tree_util import Partial

from ddpm_jax.samplers import Sampler, stateless_init
from ddpm_jax.samplers.euler import MIN_SIGNAL, euler_step, min_signal_for


def heun(*, compat: bool = False) -> Sampler:
    """Take Euler's step, then take it again with the mean of eps at both ends.

    The step to clean data is Euler's.
    compat: as in diffusers, correct the slope also where sqrt(alpha_bar) is at most 0.001.
    """
    step = Partial(_step, min_signal_for(compat))
    return Sampler(Partial(stateless_init), step, order=2, evaluations=2)


def _step(min_signal, keys, denoise, xt, row, state):
    x0, eps, _ = denoise(xt, row.t)
    return heun_step(denoise, row, x0, eps, min_signal), state


def heun_step(denoise, row, x0, eps, min_signal=MIN_SIGNAL):
    """x_next from x0 and eps at the row's level.

    The second evaluation has no weight in a step to clean data or from pure noise.
    """
    x_euler = euler_step(row, x0, eps)
    eps_next = denoise(x_euler, row.t_next_clamped).eps
    weight = jnp.where(jnp.isfinite(row.h), 0.5, 0)
    return euler_step(row, x0, eps, weight * (eps_next - eps), min_signal)
