"""The loss of an autoencoder: reconstruction, and a weak pull of its latents to N(0, 1)."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax import draws
from ddpm_jax.errors import check_floats
from ddpm_jax.models.autoencoder import LOG_VARIANCE_RANGE, posterior_sample
from ddpm_jax.models.image_autoencoder import ImageAutoencoder
from ddpm_jax.training.step import Loss


def autoencoder_loss(model: ImageAutoencoder, dtype: str = "float32") -> Loss:
    """Make the loss (params, keys, batch) -> losses (b,) of an autoencoder.

    mean |x - decode(z)| + kl_weight * mean KL(q(z | x) || N(0, 1)), with z drawn from q(z | x) by
    the keys. Rombach et al. 2022 add terms of further networks, which are left out. The loss raises
    ValueError for images of integers.
    """
    options = {"dtype": jnp.dtype(dtype)}

    def loss(params, keys, batch):
        images = batch["image"]
        check_floats(image=images)
        moments = model.encode(params, images, **options)
        latents = posterior_sample(moments, draws.normal(keys, model.latent_shape))
        error = jnp.abs(images - model.decode(params, latents, **options))
        pixels = jnp.mean(error, (1, 2, 3))
        return pixels + model.kl_weight * jnp.mean(kl_to_normal(moments), (1, 2, 3))

    return loss


def kl_to_normal(moments: Float[Array, "b h w k2"]) -> Float[Array, "b h w k"]:
    """KL(N(mean, variance) || N(0, 1)) = (mean^2 + variance - 1 - log variance) / 2, in nats."""
    mean, log_variance = jnp.split(moments, 2, -1)
    log_variance = jnp.clip(log_variance, *LOG_VARIANCE_RANGE)
    return (mean**2 + jnp.exp(log_variance) - 1 - log_variance) / 2
