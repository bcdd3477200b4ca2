"""Euler's method on the probability-flow ODE: Karras et al. 2022."""

import jax.numpy as jnp
from jax.tree_util import Partial

from ddpm_jax.samplers import Sampler, stateless_init

MIN_SIGNAL = 1e-3
"""The sqrt(alpha_bar) up to which `euler_step` ignores a slope correction: sigma is 1000 there."""


def euler() -> Sampler:
    """Move x / sqrt(alpha_bar) by (sigma_next - sigma) eps.

    The ODE is d(x / sqrt(alpha_bar)) / d sigma = eps.
    """
    return Sampler(Partial(stateless_init), Partial(_step), order=1)


def _step(keys, denoise, xt, row, state):
    x0, eps, _ = denoise(xt, row.t)
    return euler_step(row, x0, eps), state


def min_signal_for(compat):
    """The `min_signal` of `euler_step`; 0 with `compat`, because diffusers always corrects."""
    return 0.0 if compat else MIN_SIGNAL


def euler_step(row, x0, eps, slope_correction=0.0, min_signal=MIN_SIGNAL):
    """Take Euler's step for x / sqrt(alpha_bar) = x0 + sigma eps with slope eps + slope_correction.

    x_next / sqrt(alpha_bar_next) = x0 + sigma_next eps + (sigma_next - sigma) slope_correction

    This form also holds at pure noise, where sigma is infinite. The correction is left out where
    sqrt(alpha_bar) <= min_signal, as at T-1 of the schedule squaredcos: the network's error in it,
    times sigma, would drown the image.
    """
    return row.sqrt_alpha_bar_next * (
        x0 + row.sigma_next * eps + sigma_step(row, min_signal) * slope_correction
    )


def sigma_step(row, min_signal=MIN_SIGNAL):
    """sigma_next - sigma, or 0 where sqrt(alpha_bar) <= min_signal."""
    return jnp.where(row.sqrt_alpha_bar > min_signal, row.sigma_next - row.sigma, 0)
