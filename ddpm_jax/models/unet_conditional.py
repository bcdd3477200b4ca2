"""The U-Net of Stable Diffusion (Rombach et al. 2022): diffusers' UNet2DConditionModel.

Modules have diffusers' names, so that a parameter's path, joined by dots, is its name there.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from ddpm_jax.errors import check_floats, check_rows, check_shape
from ddpm_jax.image_size import ImageSize
from ddpm_jax.models import Network, Params
from ddpm_jax.models.attention import AttentionKind, collect_attention
from ddpm_jax.models.initializers import Init
from ddpm_jax.models.layers import (
    WIDEST_WINOGRAD,
    conv,
    dense,
    sinusoidal_embedding,
    upsample_nearest,
)
from ddpm_jax.models.norms import GroupNorm
from ddpm_jax.models.transformer import Transformer2D
from ddpm_jax.models.unet_blocks import BlockSettings, ResidualBlock


class TextCondition(NamedTuple):
    """The condition of a `ConditionalUNet`."""

    states: Float[Array, "b n d"]
    """The states of the text encoder."""
    image: Float[Array, "b h w k"] | None = None
    """Concatenated to xt. For inpainting: the mask, and the latents of the masked image."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConditionalUNet(Network):
    """Residual blocks and transformers that attend to a text. The defaults are Stable Diffusion 1.

    Latents may have any height and width.
    """

    sample_size: ImageSize = 64
    """Height and width of the latents that the network was trained on."""
    in_channels: int = 4
    """Channels of xt, and of the condition's image if there is one."""
    out_channels: int = 4
    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    """Channels of each level, finest first. Each further level halves the size."""
    cross_attention: tuple[bool, ...] = (True, True, True, False)
    """Which levels have transformers, finest first. The middle always has one."""
    heads: tuple[int, ...] = (8, 8, 8, 8)
    """Attention heads of each level, finest first. The middle has those of the last level."""
    transformer_layers: tuple[int, ...] = (1, 1, 1, 1)
    """Blocks per transformer of each level. The middle has those of the last level."""
    layers_per_level: int = 2
    """Residual blocks per level on the way down. The way up has one more per level."""
    context_dim: int = 768
    """Channels of the text encoder's states."""
    linear_projection: bool = False
    """Keep the transformers' outer layers as matrices, and not as 1x1 convolutions."""
    groups: int = 32
    """Groups of the group norms."""
    norm_eps: float = 1e-5
    """Added to the variance in the group norms, except in those of the transformers."""
    flip_sin_to_cos: bool = True
    """Put the cosines of the sinusoidal time embedding before the sines."""
    freq_shift: float = 0.0
    """The frequencies of the time embedding are 10000^(-i / (widths[0]/2 - freq_shift))."""
    init_scheme: Init = "ddpm"
    """ddpm: Glorot-uniform, and each residual branch starts at zero. torch: PyTorch's defaults."""

    def __post_init__(self):
        """Raise ValueError if the levels do not match."""
        super().__post_init__()
        for name in ("cross_attention", "heads", "transformer_layers"):
            num_levels = len(getattr(self, name))
            if num_levels != len(self.widths):
                raise ValueError(
                    f"{name} names {num_levels} levels, but widths has {len(self.widths)}: "
                    "give one value per level."
                )

    @property
    def direct(self) -> bool:
        """Whether 3x3 convolutions are left to XLA."""
        return max(self.widths) > WIDEST_WINOGRAD

    def module(self) -> nn.Module:
        return ConditionalUNetModule(self, name="conditional_unet")

    def example_inputs(self) -> tuple:
        size = 2 ** (len(self.widths) - 1)
        xt = jnp.zeros((1, size, size, self.in_channels), jnp.float32)
        text = jnp.zeros((1, 1, self.context_dim), jnp.float32)
        return xt, jnp.zeros(1, jnp.int32), text

    def apply(
        self,
        params: Params,
        xt: Float[Array, "b h w c"],
        t: Num[Array, " b"],
        condition: TextCondition,
        *,
        dtype: Any = jnp.float32,
    ) -> Float[Array, "b h w out"]:
        """Compute the network's output in `dtype` and return it in float32."""
        inputs = self._inputs(xt, t, condition, dtype)
        output: Any = self.module().apply({"params": params}, *inputs)
        return output.astype(jnp.float32)

    def queries_and_keys(
        self,
        params: Params,
        xt: Float[Array, "b h w c"],
        t: Num[Array, " b"],
        condition: TextCondition,
        *,
        kind: AttentionKind = "cross_attention",
        dtype: Any = jnp.float32,
    ) -> dict[str, tuple[Array, Array]]:
        """The queries and keys of each attention layer, by its path (`collect_attention`)."""
        inputs = self._inputs(xt, t, condition, dtype)
        return collect_attention(self.module(), params, inputs, kind)

    def _inputs(self, xt, t, condition: TextCondition, dtype) -> tuple:
        """The arguments of the module. Raise ValueError for rows or channels that do not fit."""
        states, image = condition
        check_floats(xt=xt)
        check_shape(xt.shape[:1], t=t)
        check_rows(xt.shape[0], text=states, image=image)
        if image is not None:
            xt = jnp.concatenate([xt, image], -1)
        if xt.shape[-1] != self.in_channels:
            raise ValueError(
                f"The network takes {self.in_channels} channels, not {xt.shape[-1]}: "
                "an inpainting network needs a mask and masked latents, others take none."
            )
        if states.shape[-1] != self.context_dim:
            raise ValueError(
                f"The network takes text states of {self.context_dim} channels, "
                f"not {states.shape[-1]}: use the text encoder that it was trained with."
            )
        return xt.astype(dtype), t, states.astype(dtype)


class ConditionalUNetModule(nn.Module):
    """The Linen module of `ConditionalUNet`. The condition's image is part of xt already."""

    net: ConditionalUNet

    @nn.compact
    def __call__(
        self, xt: Float[Array, "b h w c"], t: Num[Array, " b"], text: Float[Array, "b n d"]
    ) -> Float[Array, "b h w out"]:
        net = self.net
        emb = self._embed(t, xt.dtype)  # (b, 4 * widths[0])
        h = self._conv(xt, net.widths[0], "conv_in")
        skips = self._down(h, emb, text)
        h = self._residual(skips[-1], emb, net.widths[-1], "mid_block.resnets.0")
        h = self._transformer(h, text, -1, "mid_block.attentions.0")
        h = self._residual(h, emb, net.widths[-1], "mid_block.resnets.1")
        h = self._up(h, skips, emb, text)  # (b, h, w, widths[0])
        h = nn.silu(GroupNorm(net.groups, net.norm_eps, name="conv_norm_out")(h))
        return self._conv(h, net.out_channels, "conv_out", zero=True)

    def _embed(self, t, dtype):
        net = self.net
        width = net.widths[0]
        waves = sinusoidal_embedding(
            t, width, flip_sin_to_cos=net.flip_sin_to_cos, freq_shift=net.freq_shift
        ).astype(dtype)
        name = "time_embedding.linear"
        hidden = nn.silu(dense(waves, 4 * width, f"{name}_1", init=net.init_scheme))
        return dense(hidden, 4 * width, f"{name}_2", init=net.init_scheme)

    def _down(self, h, emb, text):
        """All states on the way down, which are the skips on the way up."""
        net = self.net
        skips = [h]
        for i, width in enumerate(net.widths):
            block = f"down_blocks.{i}"
            for j in range(net.layers_per_level):
                skips.append(self._layer(skips[-1], emb, text, i, block, j))
            if i + 1 < len(net.widths):
                # (b, h, w, width) -> (b, ceil(h / 2), ceil(w / 2), width)
                name = f"{block}.downsamplers.0.conv"
                skips.append(self._conv(skips[-1], width, name, stride_offset=0))
        return skips

    def _up(self, h, skips, emb, text):
        net = self.net
        for i, width in reversed(list(enumerate(net.widths))):
            # diffusers numbers the blocks in the order in which they run.
            block = f"up_blocks.{len(net.widths) - 1 - i}"
            for j in range(net.layers_per_level + 1):
                h = jnp.concatenate([h, skips.pop()], -1)
                h = self._layer(h, emb, text, i, block, j)
            if i > 0:
                # An odd size was rounded up when it was halved, so the doubled one is cut.
                rows, columns = skips[-1].shape[1:3]
                h = upsample_nearest(h)[:, :rows, :columns]
                h = self._conv(h, width, f"{block}.upsamplers.0.conv")
        return h

    def _layer(self, h, emb, text, level, block, j):
        """A residual block, and a transformer if the level has them."""
        h = self._residual(h, emb, self.net.widths[level], f"{block}.resnets.{j}")
        if self.net.cross_attention[level]:
            h = self._transformer(h, text, level, f"{block}.attentions.{j}")
        return h

    def _conv(self, h, width, name, **options):
        net = self.net
        return conv(h, width, 3, name, init=net.init_scheme, direct=net.direct, **options)

    def _residual(self, h, emb, width, name):
        net = self.net
        blocks = BlockSettings(
            groups=net.groups, norm_eps=net.norm_eps, init_scheme=net.init_scheme
        )
        return ResidualBlock(blocks, width, direct=net.direct, name=name)(h, emb, None)

    def _transformer(self, h, text, level, name):
        net = self.net
        layer = Transformer2D(
            net.heads[level],
            net.transformer_layers[level],
            net.groups,
            net.linear_projection,
            net.init_scheme,
            name=name,
        )
        return layer(h, text)
