"""The variational bound on the negative log likelihood, in bits per dimension.

-log p(x_0) <= L_T + sum_{t=2}^T KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))
               - log p(x_0 | x_1)                                        Eq. 5, Ho et al. 2020

The paper's timesteps are 1..T and its x_0 is clean data. The code's are 0..T-1: the term at the
code's t is that of the paper's t + 1, so the one at 0 is -log p(x_0 | x_1).
"""

import math
from functools import partial
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, Key

from ddpm_jax import draws
from ddpm_jax.diffusion.grid import GridRow, one_step
from ddpm_jax.diffusion.posterior import (
    Variance,
    clipped_posterior_variance,
    learned_log_variance,
    posterior,
)
from ddpm_jax.diffusion.prediction import Denoiser, Prediction
from ddpm_jax.diffusion.schedule import NoiseSchedule, per_example, q_sample
from ddpm_jax.errors import check_choice, check_shape

HALF_BIN = 1 / 255
"""Half the distance between two levels of a uint8 image in [-1, 1]."""


class VariationalBound(NamedTuple):
    """The bound of each example and its terms, in bits per dimension.

    `terms` holds the KL divergence of the reverse step at each t, and at t = 0 the decoder's
    -log p(x_0 | x_1). `prior` is L_T, the KL divergence of q(x_T | x_0) from N(0, I).
    """

    terms: Float[Array, "b T"]
    prior: Float[Array, " b"]

    @property
    def decoder(self) -> Float[Array, " b"]:
        """-log p(x_0 | x_1)."""
        return self.terms[:, 0]

    @property
    def total(self) -> Float[Array, " b"]:
        """The bound: the prior plus all terms."""
        return self.prior + jnp.sum(self.terms, 1)


def bits_per_dim(
    keys: Key[Array, " b"],
    schedule: NoiseSchedule,
    denoise: Denoiser,
    x0: Float[Array, "b h w c"],
    variance: Variance = "fixed_small",
) -> VariationalBound:
    """The bound of 8-bit images in [-1, 1], with one noise sample at each of the T timesteps.

    `keys` holds one key per example. `variance` names the variance of the reverse step, as in the
    ddpm sampler. Raise ValueError for another name, and for a learned variance if the network
    predicts none.
    """
    t = jnp.arange(schedule.timesteps, dtype=jnp.int32)
    terms = bound_terms(keys, schedule, denoise, x0, t, variance)
    return VariationalBound(terms, prior_term(schedule, x0))


def bound_terms(
    keys: Key[Array, " b"],
    schedule: NoiseSchedule,
    denoise: Denoiser,
    x0: Float[Array, "b h w c"],
    t: Int[Array, " n"],
    variance: Variance = "fixed_small",
) -> Float[Array, "b n"]:
    """The bound's terms at the timesteps `t`: all, or a few per call to show progress."""
    check_shape(x0.shape[:1], keys=keys)
    denoise = denoise if isinstance(denoise, Partial) else Partial(denoise)
    return _bound_terms(keys, schedule, denoise, x0, t, variance)


def _scan_terms(keys, schedule, denoise, x0, timesteps, variance):
    def term_at(t):
        eps = draws.normal(draws.fold_in(keys, t), x0.shape[1:])
        t_per_example = jnp.broadcast_to(t, x0.shape[:1])
        xt = q_sample(schedule, x0, t_per_example, eps)
        return bound_term(schedule, denoise(xt, t), x0, xt, t_per_example, variance)

    return jax.lax.map(term_at, timesteps).T


_bound_terms = jax.jit(_scan_terms, static_argnames="variance")


@partial(jax.jit, static_argnames="variance", inline=True)
def bound_term(
    schedule: NoiseSchedule,
    prediction: Prediction,
    x0: Float[Array, "b h w c"],
    xt: Float[Array, "b h w c"],
    t: Int[Array, " b"],
    variance: Variance,
) -> Float[Array, " b"]:
    """The bound's term at each example's t, averaged over dimensions, in bits.

    It is KL(q(x_next | xt, x0) || p(x_next | xt)), or at t = 0 -log p(x0 | xt).
    """
    check_shape(x0.shape[:1], t=t)
    check_shape(x0.shape, xt=xt)
    row = GridRow(*per_example(one_step(schedule, t)[:-1], x0))._replace(schedule=schedule)
    log_var = _log_variance(variance, row, prediction)
    log_var_q = jnp.log(clipped_posterior_variance(row))
    # Both means are linear in x0. Subtracting the two x0 first keeps the digits that a difference
    # of the means would lose.
    difference, _ = posterior(row, x0 - prediction.x0, jnp.zeros_like(xt))
    kl = 0.5 * (
        log_var - log_var_q + jnp.expm1(log_var_q - log_var) + difference**2 * jnp.exp(-log_var)
    )
    nats = jnp.where(per_example(t, x0) == 0, decoder_nll(x0, prediction.x0, log_var), kl)
    return jnp.mean(nats, (1, 2, 3)) / math.log(2)


def _log_variance(variance: Variance, row: GridRow, prediction: Prediction) -> Array:
    check_choice(get_args(Variance), variance=variance)
    if variance.startswith("learned"):
        return learned_log_variance(variance, row, prediction.log_var)
    fixed = clipped_posterior_variance(row)
    if variance == "fixed_large":
        # In the step to clean data the variance is the clipped one, as in the code of Ho et al.
        fixed = jnp.where(row.sqrt_one_minus_alpha_bar_next > 0, row.beta, fixed)
    return jnp.broadcast_to(jnp.log(fixed), prediction.x0.shape)


@partial(jax.jit, inline=True)
def decoder_nll(
    x0: Float[Array, "b h w c"], mean: Float[Array, "b h w c"], log_var: Float[Array, "b h w c"]
) -> Float[Array, "b h w c"]:
    """-log of the mass of N(mean, exp(log_var)) in each 8-bit pixel's bin (Eq. 13, Ho et al. 2020).

    In nats. The lowest bin extends to -infinity, the highest to infinity.
    """
    scale = jnp.exp(-0.5 * log_var)
    above = (x0 - mean + HALF_BIN) * scale
    below = (x0 - mean - HALF_BIN) * scale
    # A bin right of the mean is mirrored into the left tail, where log_ndtr is accurate.
    right = above + below > 0
    upper = log_ndtr(jnp.where(right, -below, above))
    lower = log_ndtr(jnp.where(right, -above, below))
    within = upper + jnp.log(-jnp.expm1(jnp.minimum(lower - upper, -1e-6)))
    log_mass = jnp.where(x0 > 1 - HALF_BIN, log_ndtr(-below), within)
    log_mass = jnp.where(x0 < HALF_BIN - 1, log_ndtr(above), log_mass)
    return -log_mass


@partial(jax.jit, inline=True)
def prior_term(schedule: NoiseSchedule, x0: Float[Array, "b h w c"]) -> Float[Array, " b"]:
    """L_T = KL(q(x_T | x_0) || N(0, I)), averaged over dimensions, in bits."""
    alpha_bar = schedule.alpha_bar[-1]
    kl = 0.5 * (alpha_bar * x0**2 - alpha_bar - jnp.log1p(-alpha_bar))
    return jnp.mean(kl, (1, 2, 3)) / math.log(2)
