"""Latents: images encoded by the autoencoder, times its scaling factor."""

import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddpm_jax.devices import parallel
from ddpm_jax.models.autoencoder import Autoencoder, posterior_sample
from ddpm_jax.pretrained.stable_diffusion import StableDiffusion


def encode_image(
    model: StableDiffusion,
    images: Float[Array, "b h w c"] | Float[np.ndarray, "b h w c"],
    noise: Float[Array, "b h2 w2 k"] | None = None,
) -> Float[Array, "b h2 w2 k"]:
    """The latents of images in [-1, 1], encoded in float32, one at a time on each device.

    They are a sample of the encoder's Gaussian by standard normal `noise`, or without it the mean.
    """
    return model.autoencoder.scaling_factor * posterior_sample(encode_moments(model, images), noise)


def encode_moments(
    model: StableDiffusion, images: Float[Array, "b h w c"] | Float[np.ndarray, "b h w c"]
) -> Float[Array, "b h2 w2 k2"]:
    """The means and log variances of the latents of images, in float32.

    Each device encodes one image at a time.
    """
    encode = _method(model.autoencoder, "encode")
    return parallel.map_rows(encode, model.autoencoder_params, jnp.asarray(images))


def decode(model: StableDiffusion, latents: Float[Array, "b h w k"]) -> Float[Array, "b h2 w2 c"]:
    """The images of latents, in float32. Pixels may lie outside [-1, 1].

    Each device decodes one image at a time.
    """
    unscaled = latents / model.autoencoder.scaling_factor
    decode_rows = _method(model.autoencoder, "decode")
    return parallel.map_rows(decode_rows, model.autoencoder_params, unscaled)


@functools.cache
def _method(autoencoder: Autoencoder, name: str) -> Callable:
    """One function for all equal autoencoders, so that `jit` does not compile again."""
    return getattr(autoencoder, name)
