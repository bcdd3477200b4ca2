"""Latents: images encoded by the autoencoder, times its scaling factor."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddpm_jax.models import Params
from ddpm_jax.models.autoencoder import Autoencoder
from ddpm_jax.pretrained.stable_diffusion import StableDiffusion

LOG_VARIANCE_RANGE = (-30.0, 20.0)


def encode_image(
    model: StableDiffusion,
    images: Float[Array, "b h w c"] | Float[np.ndarray, "b h w c"],
    noise: Float[Array, "b h2 w2 k"] | None = None,
) -> Float[Array, "b h2 w2 k"]:
    """The latents of images in [-1, 1], encoded one at a time in float32.

    They are a sample of the encoder's Gaussian by standard normal `noise`, or without it the mean.
    """
    return model.autoencoder.scaling_factor * posterior_sample(encode_moments(model, images), noise)


def encode_moments(
    model: StableDiffusion, images: Float[Array, "b h w c"] | Float[np.ndarray, "b h w c"]
) -> Float[Array, "b h2 w2 k2"]:
    """The means and log variances of the latents of images, encoded one at a time in float32."""
    rows = [
        _encode(model.autoencoder, model.autoencoder_params, jnp.asarray(image)[None])
        for image in images
    ]
    return jnp.concatenate(rows)


def posterior_sample(
    moments: Float[Array, "b h w k2"], noise: Float[Array, "b h w k"] | None
) -> Float[Array, "b h w k"]:
    """mean + std * noise, or the mean. The moments are mean and log variance (Eq. 9, Kingma 2014).

    The log variance is clipped to [-30, 20].
    """
    mean, log_variance = jnp.split(moments, 2, -1)
    if noise is None:
        return mean
    return mean + jnp.exp(jnp.clip(log_variance, *LOG_VARIANCE_RANGE) / 2) * noise


def decode(model: StableDiffusion, latents: Float[Array, "b h w k"]) -> Float[Array, "b h2 w2 c"]:
    """The images of latents, decoded one at a time in float32. Pixels may lie outside [-1, 1]."""
    unscaled = latents / model.autoencoder.scaling_factor
    rows = [
        _decode(model.autoencoder, model.autoencoder_params, latent[None]) for latent in unscaled
    ]
    return jnp.concatenate(rows)


@functools.partial(jax.jit, static_argnames="autoencoder")
def _encode(autoencoder: Autoencoder, params: Params, images: Array) -> Any:
    return autoencoder.encode(params, images)


@functools.partial(jax.jit, static_argnames="autoencoder")
def _decode(autoencoder: Autoencoder, params: Params, latents: Array) -> Any:
    return autoencoder.decode(params, latents)
