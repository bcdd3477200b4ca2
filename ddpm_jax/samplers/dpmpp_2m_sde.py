"""SDE-DPM-Solver++(2M): section 5 of Lu et al. 2022 (DPM-Solver++)."""

import jax.numpy as jnp
from jax.tree_util import Partial

from ddpm_jax.samplers import Sampler, step_noise
from ddpm_jax.samplers.dpmpp_2m import extrapolated, order_rule_for, start


def dpmpp_2m_sde(*, compat: bool = False) -> Sampler:
    """As `dpmpp_2m`, on the reverse SDE: each step forgets half its noise and draws it anew.

    x_next = (std_next / std) e^-h x + sqrt(alpha_bar_next) (1 - e^-2h) D + std_next sqrt(1 - e^-2h) z.
    compat: as that of `dpmpp_2m`.
    """
    step = Partial(_step, Partial(order_rule_for(compat)))
    return Sampler(Partial(start), step)


def _step(highest, keys, denoise, xt, row, state):
    x0 = denoise(xt, row.t).x0
    new = -jnp.expm1(-2 * row.h)
    std_next = row.sqrt_one_minus_alpha_bar_next
    x_next = std_next / row.sqrt_one_minus_alpha_bar * jnp.exp(-row.h) * xt
    x_next = x_next + row.sqrt_alpha_bar_next * new * extrapolated(
        x0, row.h, state, highest(row, 2)
    )
    return x_next + std_next * jnp.sqrt(new) * step_noise(keys, row, xt), (x0, row.h)
