"""The DDPM U-Net (Ho et al. 2020, appendix B) in the topology of diffusers' UNet2DModel, leaf for leaf."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Num

from ddpm_jax.models import Model
from ddpm_jax.models.initial import Init
from ddpm_jax.models.layers import (
    GroupNorm,
    SelfAttention,
    check_image_size,
    conv,
    dense,
    dropout,
    embedding,
    module_keys,
    sinusoidal_embedding,
    upsample_nearest,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNet(Model):
    """Residual blocks with group norm, attention at chosen levels, learned down- and upsampling."""

    widths: tuple[int, ...] = (128, 256, 256, 256)
    """Channels of each level, the finest first; each further level halves the picture."""
    attention: tuple[bool, ...] = (False, True, False, False)
    """Which levels have self-attention; the middle always has it."""
    layers_per_level: int = 2
    """Residual blocks a level on the way down; one more on the way up."""
    head_dim: int | None = None
    """Channels an attention head; None for a single head."""
    dropout: float = 0.0
    """Share of activations dropped in each residual block while training, in [0, 1)."""
    groups: int = 32
    norm_eps: float = 1e-6
    flip_sin_to_cos: bool = False
    freq_shift: float = 1.0
    symmetric_padding: bool = False
    """Pad the strided convolutions by 1 on all sides, instead of at the right and the bottom as DDPM does."""
    init_scheme: Init = "ddpm"

    def check(self) -> None:
        check_image_size(self.image_size, len(self.widths) - 1)
        if len(self.attention) != len(self.widths):
            raise ValueError(f"attention names {len(self.attention)} levels, but widths has {len(self.widths)}")

    def module(self) -> nn.Module:
        return UNetModule(self, name="unet")


class ResidualBlock(nn.Module):
    """norm, SiLU, conv, plus the time embedding, norm, SiLU, dropout, conv, plus the input."""

    net: UNet
    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], emb: Float[Array, "b d"], keys) -> Float[Array, "b h w w2"]:
        net, init = self.net, self.net.init_scheme
        h = nn.silu(GroupNorm(net.groups, net.norm_eps, name="norm1")(x))
        h = conv(h, self.width, 3, "conv1", init=init)
        h = h + dense(nn.silu(emb), self.width, "time_emb_proj", init=init)[:, None, None]
        h = nn.silu(GroupNorm(net.groups, net.norm_eps, name="norm2")(h))
        h = dropout(h, net.dropout, module_keys(self, keys))
        h = conv(h, self.width, 3, "conv2", init=init, zero=True)
        return h + (x if x.shape[-1] == self.width else conv(x, self.width, 1, "conv_shortcut", init=init))


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention if the level has it; returns every state."""

    net: UNet
    width: int
    attention: bool

    @nn.compact
    def __call__(self, x: Array, emb: Array, keys, skips: tuple[Array | None, ...]) -> list[Array]:
        states = []
        for j, skip in enumerate(skips):
            x = x if skip is None else jnp.concatenate([x, skip], -1)
            x = ResidualBlock(self.net, self.width, name=f"resnet_{j}")(x, emb, keys)
            if self.attention:
                x = _attention(self.net, f"attention_{j}")(x)
            states.append(x)
        return states


def _attention(net: UNet, name: str) -> SelfAttention:
    return SelfAttention(net.head_dim, net.groups, net.norm_eps, net.init_scheme, name=name)


class Middle(nn.Module):
    """Residual block, attention, residual block at the coarsest level."""

    net: UNet

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], emb: Array, keys) -> Float[Array, "b h w c"]:
        x = ResidualBlock(self.net, x.shape[-1], name="resnet_0")(x, emb, keys)
        x = _attention(self.net, "attention_0")(x)
        return ResidualBlock(self.net, x.shape[-1], name="resnet_1")(x, emb, keys)


class UNetModule(nn.Module):
    """The whole net; see `UNet` for the hyperparameters."""

    net: UNet

    @nn.compact
    def __call__(
        self,
        xt: Float[Array, "b h w c"],
        t: Num[Array, " b"],
        labels: Int[Array, " b"] | None,
        keys: Key[Array, " b"] | None,
    ) -> Float[Array, "b h w out"]:
        net, init = self.net, self.net.init_scheme
        emb = self._embed(t, labels).astype(xt.dtype)
        h = conv(xt, net.widths[0], 3, "conv_in", init=init)
        h, skips = self._down(h, emb, keys)
        h = Middle(net, name="middle")(h, emb, keys)
        h = self._up(h, skips, emb, keys)
        h = nn.silu(GroupNorm(net.groups, net.norm_eps, name="norm_out")(h))
        return conv(h, net.out_channels, 3, "conv_out", init=init, zero=True)

    def _embed(self, t, labels):
        net, width = self.net, 4 * self.net.widths[0]
        waves = sinusoidal_embedding(t, net.widths[0], flip_sin_to_cos=net.flip_sin_to_cos, freq_shift=net.freq_shift)
        emb = dense(waves, width, "time_linear_1", init=net.init_scheme)
        emb = dense(nn.silu(emb), width, "time_linear_2", init=net.init_scheme)
        if net.num_classes is None:
            return emb
        if labels is None:
            raise ValueError(f"this net was made for {net.num_classes} classes: give it labels")
        return emb + embedding(labels, net.label_count, width, "class_embedding")

    def _down(self, h, emb, keys):
        net, skips = self.net, [h]
        padding = ((1, 1), (1, 1)) if net.symmetric_padding else ((0, 1), (0, 1))
        for i, (width, attention) in enumerate(zip(net.widths, net.attention, strict=True)):
            skips += Level(net, width, attention, name=f"down_{i}")(
                skips[-1], emb, keys, (None,) * net.layers_per_level
            )
            if i + 1 < len(net.widths):
                options = {"init": net.init_scheme, "strides": 2, "padding": padding}
                skips.append(conv(skips[-1], width, 3, f"downsample_{i}", **options))
        return skips[-1], skips

    def _up(self, h, skips, emb, keys):
        net, count = self.net, self.net.layers_per_level + 1
        for i in reversed(range(len(net.widths))):
            here = tuple(reversed(skips[-count:]))
            skips = skips[:-count]
            h = Level(net, net.widths[i], net.attention[i], name=f"up_{i}")(h, emb, keys, here)[-1]
            if i:
                h = conv(upsample_nearest(h), net.widths[i], 3, f"upsample_{i}", init=net.init_scheme)
        return h
