"""Linear multistep: Adams and Bashforth's method in sigma, k-diffusion's LMS."""

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
    """Integrates the polynomial in sigma through this eps and the `order` - 1 before it.

    compat: as diffusers, which takes the slope also where almost no signal is left.
    """
    check(order in (1, 2, 3, 4), f"order must be 1, 2, 3 or 4, not {order}")
    return Sampler(history(order), Partial(_step, min_signal_for(compat)), order=order)


def _step(noise, keys, denoise, xt, row, state):
    x0, eps, _ = denoise(xt, row.t)
    values, positions = state = remember(state, eps, row.sigma)
    step = sigma_step(row, noise)
    nodes = (positions - positions[0]) / jnp.where(step == 0, 1, step)
    weights = integral_weights(
        nodes, uniform_moments(len(nodes), nodes.dtype), count_known(positions)
    )
    return euler_step(row, x0, eps, change_from_newest(weights, values), noise), state
