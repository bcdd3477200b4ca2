"""Optimal denoisers in closed form: E[x0 | xt] of a Gaussian, a mixture or a finite set of images.

Each function returns an exact network (xt, t) -> x0. With the denoiser
`make_denoiser(schedule, network, "x0", None)`, the only error is the sampler's own.
"""

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Num

from ddpm_jax.diffusion.schedule import NoiseSchedule, per_example
from ddpm_jax.errors import check_floats


def gaussian_x0(
    schedule: NoiseSchedule, mean: Float[Array, "h w c"], covariance: Float[Array, "n n"]
) -> Partial:
    """The network (xt, t) -> E[x0 | xt] for images x0 ~ N(mean, C) of n = h w c dimensions.

    E[x0 | xt] = mean + sqrt(alpha_bar) C S^-1 (xt - sqrt(alpha_bar) mean),
    S = alpha_bar C + (1 - alpha_bar) I, the covariance of xt.
    """
    variances, axes = jnp.linalg.eigh(covariance)
    return Partial(_gaussian_x0, schedule, mean, variances, axes)


def _gaussian_x0(schedule, mean, variances, axes, xt, t):
    signal, noise = per_example(schedule.signal_and_noise(t), xt)  # (b, 1, 1, 1)
    # In the eigenvectors' coordinates C and S are diagonal.
    coordinates = (xt - signal * mean[None]).reshape(xt.shape[0], -1) @ axes  # (b, n)
    signal = signal.reshape(-1, 1)  # (b, 1)
    noise = noise.reshape(-1, 1)
    gain = signal * variances[None] / (signal**2 * variances[None] + noise**2)
    return mean[None] + ((gain * coordinates) @ axes.T).reshape(xt.shape)


def mixture_x0(
    schedule: NoiseSchedule,
    means: Float[Array, "k h w c"],
    std: Float[Array, ""] | float = 0.0,
    weights: Float[Array, " k"] | None = None,
) -> Partial:
    """The network (xt, t) -> E[x0 | xt] for images from a mixture of Gaussians N(means_k, std^2 I).

    This is the mean of the components' E[x0 | xt], weighted by their probabilities given xt.
    With std 0 the images are the finite set `means`. `weights` are uniform by default. Raise
    ValueError for means that are integers.
    """
    check_floats(means=means)
    if weights is None:
        weights = jnp.full(len(means), 1 / len(means), means.dtype)
    return Partial(_mixture_x0, schedule, means, jnp.asarray(std, means.dtype), jnp.log(weights))


def _mixture_x0(
    schedule, means, std, log_weights, xt: Float[Array, "b h w c"], t: Num[Array, " b"]
):
    signal, noise = per_example(schedule.signal_and_noise(t), xt)  # (b, 1, 1, 1)
    signal = signal[:, None]  # (b, 1, 1, 1, 1)
    noise = noise[:, None]
    variance = signal**2 * std**2 + noise**2
    deviation = xt[:, None] - signal * means[None]  # (b, k, h, w, c)
    log_likelihood = -jnp.sum(deviation**2 / variance, (2, 3, 4)) / 2  # (b, k)
    probability = jax.nn.softmax(log_weights[None] + log_likelihood, 1)
    probability = probability[:, :, None, None, None]  # (b, k, 1, 1, 1)
    return jnp.sum(probability * (means[None] + std**2 * signal / variance * deviation), 1)
