"""SDE-DPM-Solver++(2M): section 5 of Lu et al. 2022 (DPM-Solver++)."""

import jax.numpy as jnp
from jax.tree_util import Partial

from ddpm_jax.samplers import Sampler, step_noise
from ddpm_jax.samplers.dpmpp_2m import extrapolated, init_previous, order_rule_for


def dpmpp_2m_sde(*, compat: bool = False) -> Sampler:
    """Solve the reverse SDE with the extrapolated x0 of `dpmpp_2m`, called D.

    x_next = (std_next / std) e^-h x + sqrt(alpha_bar_next) (1 - e^-2h) D
             + std_next sqrt(1 - e^-2h) z,   std = sqrt(1 - alpha_bar)
    compat: as for `dpmpp_2m`.
    """
    step = Partial(_step, Partial(order_rule_for(compat)))
    return Sampler(Partial(init_previous), step)


def _step(order_rule, keys, denoise, xt, row, state):
    x0 = denoise(xt, row.t).x0
    D = extrapolated(x0, row.h, state, order_rule(row, 2))
    std_next = row.sqrt_one_minus_alpha_bar_next
    new_variance = -jnp.expm1(-2 * row.h)  # 1 - e^-2h, the renewed fraction of the noise variance
    x_next = std_next / row.sqrt_one_minus_alpha_bar * jnp.exp(-row.h) * xt
    x_next = x_next + row.sqrt_alpha_bar_next * new_variance * D
    x_next = x_next + std_next * jnp.sqrt(new_variance) * step_noise(keys, row, xt)
    return x_next, (x0, row.h)
