"""The parts of the U-Net: residual blocks, levels, the middle, and the ways from one level to the next."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.models.attention import SelfAttention
from ddpm_jax.models.initializers import Init
from ddpm_jax.models.layers import GroupNorm, conv, dense, dropout, module_keys

ResampleKind = Literal["conv", "resnet", "skip"]
Activation = Literal["silu", "relu", "gelu", "mish"]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": nn.silu,
    "relu": nn.relu,
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "mish": jax.nn.mish,
}
SKIP_SCALE = 2**0.5
"""What NCSN++ divides the sum of two branches by, so that its variance stays (Song et al. 2021, appendix H.1)."""


def quarter(channels: int) -> int:
    """NCSN++'s groups: a quarter of the channels, at most 32."""
    return min(channels // 4, 32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockSettings:
    """The hyperparameters that the parts of the U-Net read."""

    head_dim: int | None = None
    """Channels an attention head; None for a single head."""
    dropout: float = 0.0
    """Share of activations dropped in each residual block while training, in [0, 1)."""
    groups: int | None = 32
    """Groups of the norms; None for a quarter of the channels, at most 32."""
    norm_eps: float = 1e-6
    init_scheme: Init = "ddpm"
    middle: Literal["attention", "plain", "none"] = "attention"
    """At the coarsest level: two residual blocks with attention between, or without it (plain), or nothing."""
    middle_scale: float = 1.0
    """What the sums of the middle are divided by."""
    middle_groups: int | None = None
    """Groups of the middle attention's norm; None for those of the net, 0 for no norm."""
    activation: Activation = "silu"
    modulation: Literal["shift", "scale_shift"] = "shift"
    """How the time embedding comes in: added before the second norm, or as a scale and a shift after it."""

    def groups_of(self, channels: int) -> int:
        """Groups of the norm of so many channels."""
        return self.groups or quarter(channels)


class ResidualBlock(nn.Module):
    """norm, activation, conv, the time embedding, norm, activation, dropout, conv, plus the input.

    `resample` brings the input and the first activation to another size; `shortcut` has the input pass a convolution
    in any case. None for the groups leaves them to the net.
    """

    net: BlockSettings
    width: int
    groups_in: int | None = None
    groups_out: int | None = None
    scale: float = 1.0
    resample: Callable[[Array], Array] = lambda x: x
    shortcut: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], emb: Float[Array, "b d"], keys
    ) -> Float[Array, "b h2 w2 c2"]:
        net, init, activate = self.net, self.net.init_scheme, ACTIVATIONS[self.net.activation]
        h = GroupNorm(self.groups_in or net.groups_of(x.shape[-1]), net.norm_eps, name="norm1")(x)
        x, h = self.resample(x), self.resample(activate(h))
        h = conv(h, self.width, 3, "conv1", init=init)
        norm2 = GroupNorm(self.groups_out or net.groups_of(self.width), net.norm_eps, name="norm2")
        scaled = net.modulation == "scale_shift"
        emb = dense(activate(emb), self.width * (1 + scaled), "time_emb_proj", init=init)[
            :, None, None
        ]
        if scaled:
            gain, shift = jnp.split(emb, 2, -1)
            h = norm2(h) * (1 + gain) + shift
        else:
            h = norm2(h + emb)
        h = dropout(activate(h), net.dropout, module_keys(self, keys))
        h = conv(h, self.width, 3, "conv2", init=init, zero=True)
        if self.shortcut or x.shape[-1] != self.width:
            x = conv(x, self.width, 1, "conv_shortcut", init=init)
        return (x + h) / self.scale


class UNetLevel(nn.Module):
    """Residual blocks at one resolution, each followed by attention if the level has it; returns every state.

    On the way up each takes in one of the `skips` of the way down. A level of NCSN++ has its groups and scale, and on
    the way up one attention, at the end.
    """

    net: BlockSettings
    width: int
    attention: bool
    ncsnpp: bool = False

    @nn.compact
    def __call__(self, x: Array, emb: Array, keys, skips: tuple[Array | None, ...]) -> list[Array]:
        states, last = [], len(skips) - 1
        for j, skip in enumerate(skips):
            options = self._of_ncsnpp(x, skip) if self.ncsnpp else {}
            x = x if skip is None else jnp.concatenate([x, skip], -1)
            x = ResidualBlock(self.net, self.width, **options, name=f"resnet_{j}")(x, emb, keys)
            once = self.ncsnpp and skip is not None
            if self.attention and (j == last or not once):
                groups, scale = (32, SKIP_SCALE) if self.ncsnpp else (None, 1.0)
                x = attention(
                    self.net, f"attention_{0 if once else j}", groups=groups, scale=scale
                )(x)
            states.append(x)
        return states

    def _of_ncsnpp(self, x: Array, skip: Array | None) -> dict:
        channels, more = x.shape[-1], 0 if skip is None else skip.shape[-1]
        groups = quarter(channels + more)
        if self.attention and skip is not None:
            groups = min(
                channels + more // 4, 32
            )  # as diffusers has it, by the precedence of its operators
        return {"groups_in": groups, "groups_out": quarter(self.width), "scale": SKIP_SCALE}


def attention(net: BlockSettings, name: str, *, groups: int | None = None, scale: float = 1.0):
    """A self-attention layer of the net; None for the groups leaves them to the net, 0 is for no norm."""

    def apply(x: Array) -> Array:
        count = net.groups_of(x.shape[-1]) if groups is None else groups
        return SelfAttention(net.head_dim, count, net.norm_eps, net.init_scheme, scale, name=name)(
            x
        )

    return apply


class MidBlock(nn.Module):
    """Residual block, attention if the middle has it, residual block at the coarsest level."""

    net: BlockSettings

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], emb: Array, keys) -> Float[Array, "b h w c"]:
        net, scale = self.net, self.net.middle_scale
        x = ResidualBlock(net, x.shape[-1], scale=scale, name="resnet_0")(x, emb, keys)
        if net.middle == "attention":
            x = attention(net, "attention_0", groups=net.middle_groups, scale=scale)(x)
        return ResidualBlock(net, x.shape[-1], scale=scale, name="resnet_1")(x, emb, keys)


def ncsnpp_resampler(
    net: BlockSettings, width: int, resample: Callable[[Array], Array], name: str
) -> ResidualBlock:
    """The residual block by which a level of NCSN++ goes over to the next."""
    groups = quarter(width)
    return ResidualBlock(net, width, groups, groups, SKIP_SCALE, resample, shortcut=True, name=name)
