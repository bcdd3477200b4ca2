"""Ancestral sampling: Algorithm 2, Ho et al. 2020, for the stride of each row."""

import jax.numpy as jnp
from jax.tree_util import Partial

from ddpm_jax.diffusion.posterior import Variance, learned_log_variance, posterior
from ddpm_jax.errors import check_bound, check_choice
from ddpm_jax.samplers import Sampler, stateless_init, step_noise


def ddpm(*, variance: Variance = "fixed_small", clip_sample: float | None = None) -> Sampler:
    """Draw x_next from N(posterior mean of the estimated x0, variance).

    variance: fixed_small is the variance of q(x_next | x_t, x_0), fixed_large is beta (section 3.2,
    Ho et al. 2020). learned and learned_range read the network's output (Eq. 15, Nichol & Dhariwal
    2021); learned is valid only for steps of one timestep.
    clip_sample: clamp x_next itself to [-clip_sample, clip_sample] after each step, as the recipes
    of the ConvBlock U-Net do.
    """
    check_choice(VARIANCES, variance=variance)
    check_bound(**{"Sampler option clip_sample": clip_sample})
    step = Partial(_step, Partial(VARIANCES[variance]), clip_sample)
    return Sampler(Partial(stateless_init), step)


def _step(variance_for, clip_sample, keys, denoise, xt, row, state):
    x0, _, log_var = denoise(xt, row.t)
    mean, posterior_variance = posterior(row, x0, xt)  # Eq. 7
    variance = variance_for(row, posterior_variance, log_var)
    # Steps to clean data and of length 0 add no noise, whatever their variance.
    adds_noise = (row.sqrt_one_minus_alpha_bar_next > 0) & (row.h != 0)
    # The inner choice keeps derivatives finite, which a root of 0 does not have.
    std = jnp.where(adds_noise, jnp.sqrt(jnp.where(adds_noise, variance, 1)), 0)
    x_next = mean + std * step_noise(keys, row, mean)
    return x_next if clip_sample is None else jnp.clip(x_next, -clip_sample, clip_sample), state


def _fixed_small(row, posterior_variance, log_var):
    return posterior_variance


def _fixed_large(row, posterior_variance, log_var):
    return row.beta


def _learned(row, posterior_variance, log_var):
    return jnp.exp(learned_log_variance("learned", row, log_var))


def _learned_range(row, posterior_variance, log_var):
    return jnp.exp(learned_log_variance("learned_range", row, log_var))


VARIANCES = {
    "fixed_small": _fixed_small,
    "fixed_large": _fixed_large,
    "learned": _learned,
    "learned_range": _learned_range,
}
