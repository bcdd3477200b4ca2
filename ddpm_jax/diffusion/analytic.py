"""Networks known in closed form: E[x0 | xt] for data of one Gaussian, of a mixture, or of finitely many pictures.

With `make_denoiser(schedule, network, "x0", None)` they are what training strives for, so a sampler's error is its own.
"""

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Num

from ddpm_jax.diffusion.schedule import NoiseSchedule, per_example


def gaussian_x0(
    schedule: NoiseSchedule, mean: Float[Array, "h w c"], covariance: Float[Array, "n n"]
) -> Partial:
    """The network (xt, t) -> E[x0 | xt] of N(mean, covariance) over the n = h w c numbers of a picture.

    E[x0 | xt] = mean + sqrt(alpha_bar) C (alpha_bar C + (1 - alpha_bar) I)^-1 (xt - sqrt(alpha_bar) mean).
    """
    variances, axes = jnp.linalg.eigh(covariance)
    return Partial(_gaussian_x0, schedule, mean, variances, axes)


def _gaussian_x0(schedule, mean, variances, axes, xt, t):
    signal, noise = per_example(schedule.signal_and_noise(t), xt)
    along = (xt - signal * mean[None]).reshape(len(xt), -1) @ axes
    signal, noise = signal.reshape(-1, 1), noise.reshape(-1, 1)
    gain = signal * variances[None] / (signal**2 * variances[None] + noise**2)
    return mean[None] + ((gain * along) @ axes.T).reshape(xt.shape)


def mixture_x0(
    schedule: NoiseSchedule,
    means: Float[Array, "k h w c"],
    std: Float[Array, ""] | float = 0.0,
    weights: Float[Array, " k"] | None = None,
) -> Partial:
    """The network (xt, t) -> E[x0 | xt] of a mixture of N(means_k, std^2 I); std 0 is a finite set of pictures.

    The Gaussians' own E[x0 | xt], weighted by how likely xt comes from each.
    """
    weights = jnp.full(len(means), 1 / len(means), means.dtype) if weights is None else weights
    return Partial(_mixture_x0, schedule, means, jnp.asarray(std, means.dtype), jnp.log(weights))


def _mixture_x0(
    schedule, means, std, log_weights, xt: Float[Array, "b h w c"], t: Num[Array, " b"]
):
    signal, noise = (level[:, None] for level in per_example(schedule.signal_and_noise(t), xt))
    variance = signal**2 * std**2 + noise**2
    off = xt[:, None] - signal * means[None]
    log_likelihood = -jnp.sum(off**2 / variance, (2, 3, 4)) / 2
    share = jax.nn.softmax(log_weights[None] + log_likelihood, 1)[:, :, None, None, None]
    return jnp.sum(share * (means[None] + std**2 * signal / variance * off), 1)
