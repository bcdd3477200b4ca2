"""DPM-Solver++(2M): Algorithm 2, Lu et al. 2022 (DPM-Solver++)."""

import jax.numpy as jnp
from jax.tree_util import Partial

from ddpm_jax.samplers import Sampler
from ddpm_jax.samplers._multistep import full_order, reduced_final_order
from ddpm_jax.samplers.ddim import ddim_step


def dpmpp_2m(*, compat: bool = False) -> Sampler:
    """x_next = (std_next / std) x - sqrt(alpha_bar_next) (e^-h - 1) D, with D = x0 + h / (2 h_prev) (x0 - x0_prev).

    std is sqrt(1 - alpha_bar). The first step, and the last to clean data, take D = x0, which is DDIM's.
    compat: as diffusers, where in short walks the last step takes D = x0 wherever it leads.
    """
    step = Partial(_step, Partial(order_rule_for(compat)))
    return Sampler(Partial(start), step, order=2)


def start(xT):
    """No earlier x0: whatever there is was an infinite step ago."""
    return xT, jnp.full((), jnp.inf, xT.dtype)


def order_rule_for(compat):
    """The order of a step, from its row and that of the method."""
    return reduced_final_order if compat else full_order


def _step(highest, keys, denoise, xt, row, state):
    x0 = denoise(xt, row.t).x0
    return ddim_step(row, xt, extrapolated(x0, row.h, state, highest(row, 2))), (x0, row.h)


def extrapolated(x0, h, state, order):
    """x0 half a step ahead on the line through the previous one; x0 itself in order 1, or where a step is infinite."""
    x0_prev, h_prev = state
    ratio = jnp.where(jnp.isfinite(h) & jnp.isfinite(h_prev) & (order > 1), h / h_prev, 0)
    return x0 + ratio / 2 * (x0 - x0_prev)
