"""The posterior q(x_next | x_t, x_0) and the variance of the reverse step."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddpm_jax.diffusion.grid import GridRow, one_step
from ddpm_jax.diffusion.schedule import NoiseSchedule, per_example

Variance = Literal["fixed_small", "fixed_large", "learned", "learned_range"]


def posterior(row: GridRow, x0: Array, xt: Array) -> tuple[Array, Array]:
    """Mean and variance of q(x_next | x_t, x_0) for the stride of `row` (Eq. 6-7, Ho et al. 2020).

    x0 and xt are (b, h, w, c). The fields of `row` are scalars or (b, 1, 1, 1), and so is the
    variance.
    """
    one_minus_alpha_bar = row.sqrt_one_minus_alpha_bar**2
    one_minus_alpha_bar_next = row.sqrt_one_minus_alpha_bar_next**2
    sqrt_alpha = row.sqrt_alpha_bar / row.sqrt_alpha_bar_next
    mean = row.sqrt_alpha_bar_next * row.beta / one_minus_alpha_bar * x0
    mean = mean + sqrt_alpha * one_minus_alpha_bar_next / one_minus_alpha_bar * xt
    return mean, one_minus_alpha_bar_next / one_minus_alpha_bar * row.beta


def q_posterior(
    schedule: NoiseSchedule,
    x0: Float[Array, "b h w c"],
    xt: Float[Array, "b h w c"],
    t: Int[Array, " b"],
) -> tuple[Float[Array, "b h w c"], Float[Array, "b 1 1 1"]]:
    """Mean and variance of q(x_next | xt, x0) one step on (Eq. 7, Ho et al. 2020).

    From t = 0, x_next is x0 itself, and the variance is 0.
    """
    return posterior(GridRow(*per_example(one_step(schedule, t)[:-1], x0)), x0, xt)


def learned_log_variance(variance: str, row: GridRow, network_output: Array | None) -> Array:
    """Log variance (b, h, w, c) of p(x_next | x_t) from a network's output for it.

    learned: the output is the log variance. learned_range: the output interpolates between the log
    variances of fixed_small (-1) and fixed_large (1) (Eq. 15, Nichol & Dhariwal 2021).
    The fields of `row` are scalars or (b, 1, 1, 1), and it has a schedule. Raise ValueError for a
    network without such an output.
    """
    if network_output is None:
        raise ValueError(
            "The network does not predict the variance: use variance fixed_small or fixed_large."
        )
    if variance == "learned":
        return network_output
    fraction = (network_output + 1) / 2
    log_small = jnp.log(clipped_posterior_variance(row))
    return fraction * jnp.log(row.beta) + (1 - fraction) * log_small


def clipped_posterior_variance(row: GridRow) -> Array:
    """Variance of q(x_next | x_t, x_0); in the step to clean data, the variance at t = 1 instead.

    The true variance of that step is 0, which has no logarithm. The code of Ho et al. 2020 and of
    Nichol & Dhariwal 2021 clips it in the same way. No sampler adds noise in that step.
    """
    assert row.schedule is not None
    # A schedule with T = 1 has no t = 1: index -1 is then t = 0.
    one_minus_alpha_bar = row.schedule.sqrt_one_minus_alpha_bar[:2] ** 2
    beta = row.schedule.beta[:2]
    at_1 = one_minus_alpha_bar[0] / one_minus_alpha_bar[-1] * beta[-1]
    variance = (row.sqrt_one_minus_alpha_bar_next / row.sqrt_one_minus_alpha_bar) ** 2 * row.beta
    return jnp.where(row.sqrt_one_minus_alpha_bar_next > 0, variance, at_1)
