"""Linear multistep: the Adams-Bashforth method in sigma, k-diffusion's LMS."""

from typing import Literal

import jax.numpy as jnp
from jax.tree_util import Partial

from ddpm_jax.errors import check
from ddpm_jax.samplers import Sampler
from ddpm_jax.samplers._multistep import (
    change_from_newest,
    count_known,
    history,
    integral_weights,
    remember,
    uniform_moments,
)
from ddpm_jax.samplers.euler import euler_step, min_signal_for, sigma_step


def lms(*, order: Literal[1, 2, 3, 4] = 4, compat: bool = False) -> Sampler:
    """Integrate the polynomial in sigma through the `order` newest eps.

    compat: as in diffusers, correct the slope also where sqrt(alpha_bar) is at most 0.001.
    """
    check(order in (1, 2, 3, 4), f"Sampler option order must be 1, 2, 3 or 4, not {order}.")
    return Sampler(history(order), Partial(_step, min_signal_for(compat)), order=order)


def _step(min_signal, keys, denoise, xt, row, state):
    x0, eps, _ = denoise(xt, row.t)
    state = remember(state, eps, row.sigma)
    values, positions = state
    step = sigma_step(row, min_signal)
    nodes = (positions - positions[0]) / jnp.where(step == 0, 1, step)
    moments = uniform_moments(len(nodes), nodes.dtype)
    weights = integral_weights(nodes, moments, count_known(positions))
    slope_correction = change_from_newest(weights, values)
    return euler_step(row, x0, eps, slope_correction, min_signal), state
