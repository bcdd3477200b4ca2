"""Euler's method with new noise after each step: k-diffusion's ancestral sampler."""

import jax.numpy as jnp
from jax.tree_util import Partial

from ddpm_jax.errors import check_at_least
from ddpm_jax.samplers import Sampler, stateless_init, step_noise


def euler_ancestral(*, eta: float = 1.0) -> Sampler:
    """Take Euler's step to sigma_down, then add noise of standard deviation sigma_up.

    sigma_up = eta sigma_next sqrt(1 - sigma_next^2 / sigma^2), at most sigma_next, and
    sigma_down^2 = sigma_next^2 - sigma_up^2. eta = 1 samples the posterior of Ho et al. 2020,
    eta = 0 is `euler`.
    """
    check_at_least(0, **{"Sampler option eta": eta})
    return Sampler(Partial(stateless_init), Partial(_step, eta))


def _step(eta, keys, denoise, xt, row, state):
    x0, eps, _ = denoise(xt, row.t)
    # sigma_next^2 / sigma^2 = e^-2h. The maximum is for rows that lead to a noisier level.
    renewed = jnp.sqrt(jnp.maximum(-jnp.expm1(-2 * row.h), 0))
    sigma_up = jnp.minimum(row.sigma_next, eta * row.sigma_next * renewed)
    sigma_down = jnp.sqrt(jnp.maximum(row.sigma_next**2 - sigma_up**2, 0))
    y_next = x0 + sigma_down * eps + sigma_up * step_noise(keys, row, xt)
    return row.sqrt_alpha_bar_next * y_next, state
