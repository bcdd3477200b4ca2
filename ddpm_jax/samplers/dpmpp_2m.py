"""DPM-Solver++(2M): Algorithm 2, Lu et al. 2022 (DPM-Solver++)."""

import jax.numpy as jnp
from jax.tree_util import Partial

from ddpm_jax.samplers import Sampler
from ddpm_jax.samplers._multistep import full_order, reduced_final_order
from ddpm_jax.samplers.ddim import ddim_step


def dpmpp_2m(*, compat: bool = False) -> Sampler:
    """x_next = (std_next / std) x - sqrt(alpha_bar_next) (e^-h - 1) D, std = sqrt(1 - alpha_bar).

    D = x0 + h / (2 h_prev) (x0 - x0_prev). The first step and the step to clean data take D = x0,
    which is the DDIM step.
    compat: as in diffusers, the last of fewer than 15 steps takes D = x0 wherever it leads.
    """
    step = Partial(_step, Partial(order_rule_for(compat)))
    return Sampler(Partial(init_previous), step, order=2)


def init_previous(xT):
    """The state (x0_prev, h_prev) before the first step. h_prev = inf means no x0_prev."""
    return xT, jnp.full((), jnp.inf, xT.dtype)


def order_rule_for(compat):
    """The function (row, order) -> order of the step at that row."""
    return reduced_final_order if compat else full_order


def _step(order_rule, keys, denoise, xt, row, state):
    x0 = denoise(xt, row.t).x0
    D = extrapolated(x0, row.h, state, order_rule(row, 2))
    return ddim_step(row, xt, D), (x0, row.h)


def extrapolated(x0, h, state, order):
    """D: the line through x0_prev and x0, half a step ahead of x0.

    It is x0 itself for order 1, and if the h of this step or of the previous one is infinite.
    """
    x0_prev, h_prev = state
    use_line = jnp.isfinite(h) & jnp.isfinite(h_prev) & (order > 1)
    ratio = jnp.where(use_line, h / h_prev, 0)
    return x0 + ratio / 2 * (x0 - x0_prev)
