"""Settings to train an `Autoencoder`; it encodes whole batches."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.models import ImageNetwork, Params
from ddpm_jax.models.autoencoder import Autoencoder
from ddpm_jax.models.initializers import Init


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageAutoencoder(ImageNetwork):
    """The settings of an `Autoencoder`, and the weight of its loss's second term."""

    FORMER_FIELDS: ClassVar = ("num_classes", "label_dropout", "learned_variance")
    """Settings in the JSON of older runs, where they had no meaning."""

    latent_channels: int = 4
    widths: tuple[int, ...] = (32, 64, 64)
    """Channels of each level, finest first. Each further level halves the size."""
    layers_per_level: int = 1
    """Residual blocks per level of the encoder. The decoder has one more per level."""
    groups: int = 8
    """Groups of the group norms."""
    kl_weight: float = 1e-3
    """Weight of the Kullback-Leibler divergence, which keeps latents near N(0, 1)."""
    init_scheme: Init = "torch"
    """ddpm: Glorot-uniform, and each residual branch starts at zero. torch: PyTorch's defaults."""

    @property
    def halvings(self) -> int:
        return len(self.widths) - 1

    @property
    def net(self) -> Autoencoder:
        """The network itself."""
        return Autoencoder(
            sample_size=self.image_size,
            channels=self.channels,
            latent_channels=self.latent_channels,
            widths=self.widths,
            layers_per_level=self.layers_per_level,
            groups=self.groups,
            init_scheme=self.init_scheme,
        )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """The shape (h, w, c) of the latents of an image."""
        height, width, _ = self.image_shape
        return height // self.net.factor, width // self.net.factor, self.latent_channels

    def module(self) -> nn.Module:
        return self.net.module()

    def example_inputs(self) -> tuple:
        return self.net.example_inputs()

    def encode(
        self, params: Params, images: Float[Array, "b h w c"], *, dtype: Any = jnp.float32
    ) -> Float[Array, "b h2 w2 moments"]:
        """The moments of the latents of images, encoded as one batch."""
        moments, _ = self._run(params, images.astype(dtype), None)
        return moments.astype(jnp.float32)

    def decode(
        self, params: Params, latents: Float[Array, "b h2 w2 k"], *, dtype: Any = jnp.float32
    ) -> Float[Array, "b h w c"]:
        """The images of latents, decoded as one batch."""
        _, images = self._run(params, None, latents.astype(dtype))
        return images.astype(jnp.float32)

    def _run(self, params, images, latents) -> Any:
        return self.module().apply({"params": params}, images, latents)
