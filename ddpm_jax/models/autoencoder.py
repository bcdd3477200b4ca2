"""The autoencoder of Stable Diffusion (Rombach et al. 2022): diffusers' AutoencoderKL.

Modules have diffusers' names, so that a parameter's path, joined by dots, is its name there.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.image_size import ImageSize
from ddpm_jax.models import Network, Params
from ddpm_jax.models.attention import SelfAttention
from ddpm_jax.models.initializers import Init
from ddpm_jax.models.layers import WIDEST_WINOGRAD, conv, upsample_nearest
from ddpm_jax.models.norms import GroupNorm
from ddpm_jax.models.unet_blocks import BlockSettings, ResidualBlock

NORM_EPS = 1e-6
"""Added to the variance in the group norms."""
LOG_VARIANCE_RANGE = (-30.0, 20.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Autoencoder(Network):
    """An encoder to the moments of a Gaussian over latents, and a decoder of latents.

    The defaults are those of Stable Diffusion.
    """

    sample_size: ImageSize = 512
    """Height and width in pixels of the images that the network was trained on."""
    channels: int = 3
    latent_channels: int = 4
    widths: tuple[int, ...] = (128, 256, 512, 512)
    """Channels of each level, finest first. Each further level halves the size."""
    layers_per_level: int = 2
    """Residual blocks per level of the encoder. The decoder has one more per level."""
    groups: int = 32
    """Groups of the group norms."""
    scaling_factor: float = 0.18215
    """Latents are multiplied by this before diffusion, so that their std is about 1."""
    init_scheme: Init = "torch"
    """ddpm: Glorot-uniform, and each residual branch starts at zero. torch: PyTorch's defaults."""

    @property
    def factor(self) -> int:
        """How many times smaller latents are than images, in height and in width."""
        return 2 ** (len(self.widths) - 1)

    @property
    def direct(self) -> bool:
        """Whether 3x3 convolutions are left to XLA."""
        return max(self.widths) > WIDEST_WINOGRAD

    def module(self) -> nn.Module:
        return AutoencoderModule(self, name="autoencoder")

    def example_inputs(self) -> tuple:
        images = jnp.zeros((1, self.factor, self.factor, self.channels), jnp.float32)
        return images, jnp.zeros((1, 1, 1, self.latent_channels), jnp.float32)

    def encode(
        self, params: Params, images: Float[Array, "b h w c"], *, dtype: Any = jnp.float32
    ) -> Float[Array, "b h2 w2 moments"]:
        """The means and log variances of the latents of images, as two halves of the channels.

        The images are encoded one by one, so the memory does not grow with the batch.
        """

        def encode_one(image):
            moments, _ = self._apply(params, image[None].astype(dtype), None)
            return moments[0].astype(jnp.float32)

        return jax.lax.map(encode_one, images)

    def decode(
        self, params: Params, latents: Float[Array, "b h w k"], *, dtype: Any = jnp.float32
    ) -> Float[Array, "b h2 w2 c"]:
        """The images of latents. The latents are decoded one by one, as `encode` does."""

        def decode_one(latent):
            _, images = self._apply(params, None, latent[None].astype(dtype))
            return images[0].astype(jnp.float32)

        return jax.lax.map(decode_one, latents)

    def _apply(self, params, images, latents) -> Any:
        return self.module().apply({"params": params}, images, latents)


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


class AutoencoderModule(nn.Module):
    """The Linen module of `Autoencoder`."""

    net: Autoencoder

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b h w c"] | None,
        latents: Float[Array, "b h2 w2 k"] | None,
    ) -> tuple[Array | None, Array | None]:
        """The moments of the images, and the images of the latents; None for no input."""
        moments = None if images is None else self._encode(images)
        decoded = None if latents is None else self._decode(latents)
        return moments, decoded

    def _encode(self, images):
        net = self.net
        h = self._conv(images, net.widths[0], "encoder.conv_in")
        for i, width in enumerate(net.widths):
            block = f"encoder.down_blocks.{i}"
            for j in range(net.layers_per_level):
                h = self._residual(h, width, f"{block}.resnets.{j}")
            if i + 1 < len(net.widths):
                # (b, h, w, width) -> (b, h // 2, w // 2, width)
                h = self._conv(h, width, f"{block}.downsamplers.0.conv", stride_offset=1)
        h = self._finish(self._middle(h, "encoder"), 2 * net.latent_channels, "encoder")
        return conv(h, 2 * net.latent_channels, 1, "quant_conv", init=net.init_scheme)

    def _decode(self, latents):
        net = self.net
        h = conv(latents, net.latent_channels, 1, "post_quant_conv", init=net.init_scheme)
        h = self._conv(h, net.widths[-1], "decoder.conv_in")
        h = self._middle(h, "decoder")
        for i, width in reversed(list(enumerate(net.widths))):
            # diffusers numbers the blocks in the order in which they run.
            block = f"decoder.up_blocks.{len(net.widths) - 1 - i}"
            for j in range(net.layers_per_level + 1):
                h = self._residual(h, width, f"{block}.resnets.{j}")
            if i > 0:
                # (b, h, w, width) -> (b, 2 * h, 2 * w, width)
                h = self._conv(upsample_nearest(h), width, f"{block}.upsamplers.0.conv")
        return self._finish(h, net.channels, "decoder")

    def _middle(self, h, part):
        net = self.net
        width = net.widths[-1]
        h = self._residual(h, width, f"{part}.mid_block.resnets.0")
        name = f"{part}.mid_block.attentions.0"
        h = SelfAttention(None, net.groups, NORM_EPS, net.init_scheme, name=name)(h)
        return self._residual(h, width, f"{part}.mid_block.resnets.1")

    def _finish(self, h, channels, part):
        norm = GroupNorm(self.net.groups, NORM_EPS, name=f"{part}.conv_norm_out")
        return self._conv(nn.silu(norm(h)), channels, f"{part}.conv_out")

    def _conv(self, h, width, name, stride_offset=None):
        net = self.net
        options: dict[str, Any] = {"stride_offset": stride_offset, "direct": net.direct}
        return conv(h, width, 3, name, init=net.init_scheme, **options)

    def _residual(self, h, width, name):
        net = self.net
        blocks = BlockSettings(groups=net.groups, norm_eps=NORM_EPS, init_scheme=net.init_scheme)
        return ResidualBlock(blocks, width, direct=net.direct, name=name)(h, None, None)
