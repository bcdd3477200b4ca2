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
    history,
    integral_weights,
    reduced_final_order,
    remember,
)
from ddpm_jax.samplers.euler import euler_step, min_signal_for


def deis(*, order: Literal[1, 2, 3] = 3, compat: bool = False) -> Sampler:
    """Integrates eps over sigma, eps being the polynomial in log sigma through this and the `order` - 1 before it.

    Eq. 15 of Zhang & Chen 2023, whose own polynomials are in t (tAB) or rho = sigma (rhoAB). The step to clean data,
    where log sigma is infinite, is Euler's. compat: the order falls to 1 at the end of short walks, as in diffusers.
    """
    check(order in (1, 2, 3), f"order must be 1, 2 or 3, not {order}")
    step = Partial(
        _step, Partial(reduced_final_order if compat else full_order), min_signal_for(compat)
    )
    return Sampler(history(order), step, order=order)


def _step(highest, noise, keys, denoise, xt, row, state):
    x0, eps, _ = denoise(xt, row.t)
    values, positions = state = remember(state, eps, row.log_snr / 2)
    some = jnp.isfinite(row.h) & (
        row.h != 0
    )  # on its Karras grid the last step of diffusers has no length
    h, count = jnp.where(some, row.h, 1), jnp.where(some, highest(row, count_known(positions)), 1)
    nodes = (positions - positions[0]) / h
    weights = integral_weights(nodes, exponential_moments(len(nodes), h, growing=False), count)
    return euler_step(row, x0, eps, change_from_newest(weights, values), noise), state
