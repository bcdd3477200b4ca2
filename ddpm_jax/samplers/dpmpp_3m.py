"""DPM-Solver++(3M): the third-order multistep method of Lu et al. 2022 (DPM-Solver++)."""

import jax.numpy as jnp
from jax.tree_util import Partial

from ddpm_jax.samplers import Sampler
from ddpm_jax.samplers._multistep import (
    count_known,
    exponential_mean,
    has_length,
    history,
    reduced_final_order,
    remember,
)
from ddpm_jax.samplers.ddim import ddim_step


def dpmpp_3m(*, compat: bool = False) -> Sampler:
    """Integrate the parabola through the three newest x0.

    x_next = (std_next / std) x + sqrt(alpha_bar_next) times the integral of e^(s - h) x0(s) over s
    in [0, h], where x0(s) is the parabola in s = lambda - lambda_t, lambda = log SNR / 2.
    compat: the update as printed in the paper and used in diffusers. It takes half the second
    derivative of the parabola, so its order is 2. The order falls to 1 at the end if there are
    fewer than 15 steps.
    """
    if compat:
        return Sampler(history(3), Partial(_published_step), order=2)
    return Sampler(history(3), Partial(_step), order=3)


def _step(keys, denoise, xt, row, state):
    state = remember(state, denoise(xt, row.t).x0, row.log_snr / 2)
    values, positions = state
    moves = has_length(row.h)
    h = jnp.where(moves, row.h, 1)
    num_nodes = jnp.where(moves, count_known(positions), 1)
    nodes = (positions - positions[0]) / h
    x0_mean = exponential_mean(h, nodes, values, num_nodes)
    return ddim_step(row, xt, x0_mean), state


def _published_step(keys, denoise, xt, row, state):
    state = remember(state, denoise(xt, row.t).x0, row.log_snr / 2)
    values, positions = state
    moves = has_length(row.h)
    known = count_known(positions)
    order = jnp.where(moves, reduced_final_order(row, known), 1)
    h = jnp.where(moves, row.h, 1)
    # Unknown positions are infinite, and would make derivatives NaN.
    r0 = jnp.where(known > 1, (positions[0] - positions[1]) / h, 1)
    r1 = jnp.where(known > 2, (positions[1] - positions[2]) / h, 1)
    slope = (values[0] - values[1]) / r0
    slope_before = (values[1] - values[2]) / r1
    bend = (slope - slope_before) / (r0 + r1)
    e = jnp.expm1(-h)
    second = -e / 2 * slope
    third = (e / h + 1) * (slope + r0 * bend) - ((e + h) / h**2 - 0.5) * bend
    change = jnp.where(order == 1, 0, jnp.where(order == 2, second, third))
    return ddim_step(row, xt, values[0]) + row.sqrt_alpha_bar_next * change, state
