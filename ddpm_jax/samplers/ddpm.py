"""Ancestral sampling: Algorithm 2, Ho et al. 2020, for the stride of each row."""

from typing import Literal

import jax.numpy as jnp
from jax.tree_util import Partial

from ddpm_jax.grids import posterior
from ddpm_jax.samplers import Sampler, no_memory, step_noise


def ddpm(
    *, variance: Literal["fixed_small", "fixed_large"] = "fixed_small", clip_sample: float | None = None
) -> Sampler:
    """Draws x_next from N(posterior mean of x0_hat, variance).

    variance: fixed_small is that of q(x_next | x_t, x_0), fixed_large is beta (section 3.2, Ho et al. 2020).
    clip_sample: clamps x_next itself to [-clip_sample, clip_sample] after each step, as S1's project does.
    """
    steps = {"fixed_small": _small, "fixed_large": _large}
    if variance not in steps:
        raise ValueError(f"unknown variance {variance!r}; there are: {', '.join(steps)}")
    return Sampler(Partial(no_memory), Partial(steps[variance], clip_sample))


def _small(clip_sample, keys, denoise, xt, row, memory):
    mean, variance = posterior(row, denoise(xt, row.t).x0, xt)
    return _draw(clip_sample, keys, row, mean, variance), memory


def _large(clip_sample, keys, denoise, xt, row, memory):
    mean, _ = posterior(row, denoise(xt, row.t).x0, xt)
    noisy = row.sqrt_one_minus_alpha_bar_next > 0  # no noise on clean data
    return _draw(clip_sample, keys, row, mean, jnp.where(noisy, row.beta, 0.0)), memory


def _draw(clip_sample, keys, row, mean, variance):
    x_next = mean + jnp.sqrt(variance) * step_noise(keys, row, mean)
    return x_next if clip_sample is None else jnp.clip(x_next, -clip_sample, clip_sample)
