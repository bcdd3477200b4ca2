"""Ancestral sampling: Algorithm 2, Ho et al. 2020, for the stride of each row."""

import jax.numpy as jnp
from jax.tree_util import Partial

from ddpm_jax.diffusion.posterior import Variance, learned_log_variance, posterior
from ddpm_jax.errors import check
from ddpm_jax.samplers import Sampler, stateless_init, step_noise


def ddpm(*, variance: Variance = "fixed_small", clip_sample: float | None = None) -> Sampler:
    """Draws x_next from N(posterior mean of x0_hat, variance).

    variance: fixed_small is that of q(x_next | x_t, x_0), fixed_large is beta (section 3.2, Ho et al. 2020); learned
    and learned_range are what the network says (Eq. 15, Nichol & Dhariwal 2021), learned for one timestep a step only.
    clip_sample: clamps x_next itself to [-clip_sample, clip_sample] after each step, as S1's project does.
    """
    check(
        variance in VARIANCES, f"unknown variance {variance!r}; there are: {', '.join(VARIANCES)}"
    )
    return Sampler(
        Partial(stateless_init), Partial(_step, Partial(VARIANCES[variance]), clip_sample)
    )


def _step(variance_of, clip_sample, keys, denoise, xt, row, state):
    prediction = denoise(xt, row.t)
    mean, small = posterior(row, prediction.x0, xt)
    variance = jnp.where(
        row.sqrt_one_minus_alpha_bar_next > 0, variance_of(row, small, prediction.log_var), 0
    )
    x_next = mean + jnp.sqrt(variance) * step_noise(keys, row, mean)  # no noise on clean data
    return x_next if clip_sample is None else jnp.clip(x_next, -clip_sample, clip_sample), state


def _fixed_small(row, small, said):
    return small


def _fixed_large(row, small, said):
    return row.beta


def _learned(row, small, said):
    return jnp.exp(learned_log_variance("learned", row, _given(said)))


def _learned_range(row, small, said):
    return jnp.exp(learned_log_variance("learned_range", row, _given(said)))


def _given(said):
    check(
        said is not None,
        "this network says nothing of the variance: use variance fixed_small or fixed_large",
    )
    return said


VARIANCES = {
    "fixed_small": _fixed_small,
    "fixed_large": _fixed_large,
    "learned": _learned,
    "learned_range": _learned_range,
}
