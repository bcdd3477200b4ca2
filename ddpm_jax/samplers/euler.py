"""Euler's method on the probability-flow ODE: Karras et al. 2022."""

import jax.numpy as jnp
from jax.tree_util import Partial

from ddpm_jax.samplers import Sampler, stateless_init


def euler() -> Sampler:
    """x / sqrt(alpha_bar) moves by (sigma_next - sigma) eps: d(x / sqrt(alpha_bar)) / d sigma = eps."""
    return Sampler(Partial(stateless_init), Partial(_step), order=1)


def _step(keys, denoise, xt, row, state):
    x0, eps, _ = denoise(xt, row.t)
    return euler_step(row, x0, eps), state


MIN_SIGNAL = 1e-3  # sqrt(alpha_bar) below which xt tells nothing of the data


def min_signal_for(compat):
    """sqrt(alpha_bar) up to which `euler_step` leaves a change out; diffusers, in no case."""
    return 0.0 if compat else MIN_SIGNAL


def euler_step(row, x0, eps, change=0.0, noise=MIN_SIGNAL):
    """x_next where x / sqrt(alpha_bar) = x0 + sigma eps moves by (sigma_next - sigma) (eps + change).

    Written from x0, so that it holds at pure noise too, where sigma is infinite. There and at levels next to it (sigma
    above 1000, as at T-1 of the squared cosine) `change` has no say: an error of the network in it, times sigma, would
    drown the picture. `noise` is the sqrt(alpha_bar) where that begins.
    """
    return row.sqrt_alpha_bar_next * (x0 + row.sigma_next * eps + sigma_step(row, noise) * change)


def sigma_step(row, noise=MIN_SIGNAL):
    """sigma_next - sigma, or 0 where what is there is all but noise."""
    return jnp.where(row.sqrt_alpha_bar > noise, row.sigma_next - row.sigma, 0)
