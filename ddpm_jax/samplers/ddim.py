"""Denoising diffusion implicit models: Song, Meng & Ermon 2021."""

import jax.numpy as jnp
from jax.tree_util import Partial

from ddpm_jax.diffusion.posterior import posterior
from ddpm_jax.errors import check_at_least
from ddpm_jax.samplers import Sampler, stateless_init, step_noise


def ddim(*, eta: float = 0.0) -> Sampler:
    """x_next = sqrt(alpha_bar_next) x0 + sqrt(1 - alpha_bar_next - std^2) eps + std z.

    Eq. 12, Song et al. 2021. std = eta std_posterior (Eq. 16), at most sqrt(1 - alpha_bar_next).
    eta = 0 is deterministic, eta = 1 is ancestral sampling with variance fixed_small.
    """
    check_at_least(0, **{"Sampler option eta": eta})
    return Sampler(Partial(stateless_init), Partial(_step, eta), order=1)


def _step(eta, keys, denoise, xt, row, state):
    x0, eps, _ = denoise(xt, row.t)
    _, posterior_variance = posterior(row, x0, xt)
    std_next = row.sqrt_one_minus_alpha_bar_next
    # On a row that leads to a noisier level, as in inversion, beta and this variance are negative.
    posterior_std = jnp.sqrt(jnp.maximum(posterior_variance, 0))
    std = jnp.minimum(eta * posterior_std, std_next)  # Eq. 16
    # The inner choice keeps derivatives finite, which a root of 0 does not have.
    left = jnp.where(std < std_next, std_next**2 - std**2, 1)
    eps_scale = jnp.where(std < std_next, jnp.sqrt(left), 0)
    x_next = row.sqrt_alpha_bar_next * x0 + eps_scale * eps
    return x_next + std * step_noise(keys, row, xt), state  # Eq. 12


def ddim_step(row, xt, x0):
    """The deterministic DDIM step from xt with a given x0.

    x_next = (std_next / std) xt + sqrt(alpha_bar_next) (1 - e^-h) x0, std = sqrt(1 - alpha_bar).
    """
    std_ratio = row.sqrt_one_minus_alpha_bar_next / row.sqrt_one_minus_alpha_bar
    return ddim_step_by(std_ratio, row.sqrt_alpha_bar_next, row.h, xt, x0)


def ddim_step_by(std_ratio, sqrt_alpha_bar_next, h, xt, x0):
    """The step of `ddim_step` between levels given by std_next / std, sqrt(alpha_bar_next), h."""
    return std_ratio * xt - sqrt_alpha_bar_next * jnp.expm1(-h) * x0
