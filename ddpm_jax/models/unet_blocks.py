"""Parts of the U-Net: residual blocks, levels, the middle, and NCSN++'s resampling blocks."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.models.attention import SelfAttention
from ddpm_jax.models.initializers import Init
from ddpm_jax.models.layers import conv_and_bias, dense, dropout, module_keys
from ddpm_jax.models.norms import GroupNorm

ResampleKind = Literal["conv", "resnet", "skip"]
Activation = Literal["silu", "relu", "gelu", "mish"]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": nn.silu,
    "relu": nn.relu,
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "mish": jax.nn.mish,
}
SKIP_SCALE = 2**0.5
"""NCSN++ divides the sum of two branches by this, to keep the variance (Song et al. 2021, H.1)."""


def quarter(channels: int) -> int:
    """The number of norm groups in NCSN++: a quarter of the channels, at most 32."""
    return min(channels // 4, 32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockSettings:
    """The hyperparameters that the parts of the U-Net read."""

    head_dim: int | None = None
    """Channels per attention head; None for a single head."""
    dropout: float = 0.0
    """Dropout rate of each residual block, in [0, 1)."""
    groups: int | None = 32
    """Groups of the group norms; None for a quarter of the channels, at most 32."""
    norm_eps: float = 1e-6
    """Added to the variance in the group norms."""
    init_scheme: Init = "ddpm"
    """ddpm: Glorot-uniform, and each residual branch starts at zero. torch: PyTorch's defaults."""
    middle: Literal["attention", "plain", "none"] = "attention"
    """Middle: two residual blocks with attention between them, without it (plain), or no blocks."""
    middle_scale: float = 1.0
    """Divisor of the residual sums in the middle."""
    middle_groups: int | None = None
    """Groups of the norm in the middle attention; None for `groups`, 0 for no norm."""
    activation: Activation = "silu"
    """Activation function of the residual blocks."""
    modulation: Literal["shift", "scale_shift"] = "shift"
    """Time embedding: added before the second norm (shift), or a scale and a shift after it."""

    def groups_of(self, channels: int) -> int:
        """The number of groups of a norm over this many channels."""
        return self.groups or quarter(channels)


class ResidualBlock(nn.Module):
    """norm, activation, conv, time embedding, norm, activation, dropout, conv; plus the input.

    `resample` changes the size of the input and of the first activation. `shortcut` puts a 1x1
    convolution on the input even if the channels stay the same. The groups of the two norms are
    the network's own if `groups_in` or `groups_out` is None. The sum is divided by `scale`.
    Without `emb` the block has no time embedding. `direct` is for its convolutions.
    """

    net: BlockSettings
    width: int
    groups_in: int | None = None
    groups_out: int | None = None
    scale: float = 1.0
    resample: Callable[[Array], Array] = lambda x: x
    shortcut: bool = False
    direct: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], emb: Float[Array, "b d"] | None, keys
    ) -> Float[Array, "b h2 w2 c2"]:
        net = self.net
        init = net.init_scheme
        activate = ACTIVATIONS[net.activation]

        groups_in = self.groups_in or net.groups_of(x.shape[-1])
        h = GroupNorm(groups_in, net.norm_eps, name="norm1")(x)  # (b, h, w, c)
        x = self.resample(x)  # (b, h2, w2, c)
        h = self.resample(activate(h))
        # (b, h2, w2, c2), (c2,)
        h, bias = conv_and_bias(h, self.width, 3, "conv1", init=init, direct=self.direct)
        h = self._second_norm(h, bias, emb)
        h = dropout(activate(h), net.dropout, module_keys(self, keys))
        h, bias = conv_and_bias(h, self.width, 3, "conv2", init=init, zero=True, direct=self.direct)
        if self.shortcut or x.shape[-1] != self.width:
            # (b, h2, w2, c2), (c2,)
            x, shortcut_bias = conv_and_bias(x, self.width, 1, "conv_shortcut", init=init)
            # One pass over h adds both.
            bias = bias + shortcut_bias
        return (x + (h + bias.astype(h.dtype)[None, None, None])) / self.scale

    def _second_norm(
        self,
        h: Float[Array, "b h w c"],
        bias: Float[Array, " c"],
        emb: Float[Array, "b d"] | None,
    ) -> Float[Array, "b h w c"]:
        """norm(h + bias + emb), or norm(h + bias) scaled and shifted by the time embedding."""
        net = self.net
        groups = self.groups_out or net.groups_of(self.width)
        norm = GroupNorm(groups, net.norm_eps, name="norm2")
        offset = jnp.broadcast_to(bias, (h.shape[0], self.width))
        if emb is None:
            return norm(h, offset)
        scale_and_shift = net.modulation == "scale_shift"
        emb_width = self.width * (1 + scale_and_shift)
        emb = ACTIVATIONS[net.activation](emb)
        emb = dense(emb, emb_width, "time_emb_proj", init=net.init_scheme)
        if not scale_and_shift:
            return norm(h, offset + emb.astype(offset.dtype))
        gain, shift = jnp.split(emb[:, None, None], 2, -1)  # each (b, 1, 1, c2)
        return norm(h, offset) * (1 + gain) + shift


class UNetLevel(nn.Module):
    """Residual blocks at one resolution, each followed by attention if the level has it.

    There is one block per entry of `skips`: None on the way down, and on the way up the state to
    concatenate to the block's input. Returns the state after each block.
    With `ncsnpp`, the level has NCSN++'s groups and scale, and on the way up only the last block
    is followed by attention.
    """

    net: BlockSettings
    width: int
    attention: bool
    ncsnpp: bool = False

    @nn.compact
    def __call__(self, x: Array, emb: Array, keys, skips: tuple[Array | None, ...]) -> list[Array]:
        states = []
        last = len(skips) - 1
        for j, skip in enumerate(skips):
            options = self._ncsnpp_options(x, skip) if self.ncsnpp else {}
            if skip is not None:
                x = jnp.concatenate([x, skip], -1)  # (b, h, w, c) -> (b, h, w, c + skip's channels)
            # (b, h, w, width)
            x = ResidualBlock(self.net, self.width, **options, name=f"resnet_{j}")(x, emb, keys)
            single_attention = self.ncsnpp and skip is not None
            if self.attention and (j == last or not single_attention):
                name = "attention_0" if single_attention else f"attention_{j}"
                groups = 32 if self.ncsnpp else None
                scale = SKIP_SCALE if self.ncsnpp else 1.0
                x = attention(self.net, name, groups=groups, scale=scale)(x)
            states.append(x)
        return states

    def _ncsnpp_options(self, x: Array, skip: Array | None) -> dict:
        channels = x.shape[-1]
        skip_channels = 0 if skip is None else skip.shape[-1]
        groups_in = quarter(channels + skip_channels)
        if self.attention and skip is not None:
            # This is diffusers' number, a slip of operator precedence that trained weights rely on.
            groups_in = min(channels + skip_channels // 4, 32)
        return {"groups_in": groups_in, "groups_out": quarter(self.width), "scale": SKIP_SCALE}


def attention(net: BlockSettings, name: str, *, groups: int | None = None, scale: float = 1.0):
    """A self-attention layer with the network's settings.

    `groups` None means the network's own number of groups, 0 means no norm.
    """

    def apply(x: Array) -> Array:
        num_groups = net.groups_of(x.shape[-1]) if groups is None else groups
        layer = SelfAttention(
            net.head_dim, num_groups, net.norm_eps, net.init_scheme, scale, name=name
        )
        return layer(x)

    return apply


class MidBlock(nn.Module):
    """The middle of the U-Net: residual block, attention if it is set, residual block."""

    net: BlockSettings

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], emb: Array, keys) -> Float[Array, "b h w c"]:
        net = self.net
        scale = net.middle_scale
        x = ResidualBlock(net, x.shape[-1], scale=scale, name="resnet_0")(x, emb, keys)
        if net.middle == "attention":
            x = attention(net, "attention_0", groups=net.middle_groups, scale=scale)(x)
        return ResidualBlock(net, x.shape[-1], scale=scale, name="resnet_1")(x, emb, keys)


def ncsnpp_resampler(
    net: BlockSettings, width: int, resample: Callable[[Array], Array], name: str
) -> ResidualBlock:
    """The residual block of NCSN++ that resamples from one level to the next."""
    groups = quarter(width)
    return ResidualBlock(net, width, groups, groups, SKIP_SCALE, resample, shortcut=True, name=name)
