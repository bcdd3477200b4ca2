"""DEIS: the exponential integrator of Zhang & Chen 2023, with polynomials in log sigma."""

from typing import Literal

import jax.numpy as jnp
from jax.tree_util import Partial

from ddpm_jax.errors import check
from ddpm_jax.samplers import Sampler
from ddpm_jax.samplers._multistep import (
    change_from_newest,
    count_known,
    exponential_moments,
    full_order,
    has_length,
    history,
    integral_weights,
    reduced_final_order,
    remember,
)
from ddpm_jax.samplers.euler import euler_step, min_signal_for


def deis(*, order: Literal[1, 2, 3] = 3, compat: bool = False) -> Sampler:
    """Integrate over sigma the polynomial in log sigma through the `order` newest eps.

    Eq. 15 of Zhang & Chen 2023, whose own polynomials are in t (tAB) or in rho = sigma (rhoAB). The
    step to clean data, where log sigma is infinite, is Euler's.
    compat: as in diffusers, the order falls to 1 at the end if there are fewer than 15 steps, and
    the slope is corrected also where sqrt(alpha_bar) is at most 0.001.
    """
    check(order in (1, 2, 3), f"Sampler option order must be 1, 2 or 3, not {order}.")
    order_rule = Partial(reduced_final_order if compat else full_order)
    step = Partial(_step, order_rule, min_signal_for(compat))
    return Sampler(history(order), step, order=order)


def _step(order_rule, min_signal, keys, denoise, xt, row, state):
    x0, eps, _ = denoise(xt, row.t)
    state = remember(state, eps, row.log_snr / 2)
    values, positions = state
    moves = has_length(row.h)
    h = jnp.where(moves, row.h, 1)
    num_nodes = jnp.where(moves, order_rule(row, count_known(positions)), 1)
    nodes = (positions - positions[0]) / h
    moments = exponential_moments(len(nodes), h, growing=False)
    slope_correction = change_from_newest(integral_weights(nodes, moments, num_nodes), values)
    return euler_step(row, x0, eps, slope_correction, min_signal), state
