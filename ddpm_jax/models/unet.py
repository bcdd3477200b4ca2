"""The DDPM U-Net (Ho et al. 2020, appendix B) in the topology of diffusers' UNet2DModel, leaf for leaf.

With other settings it is also the U-Net of Dhariwal & Nichol 2021 (scale_shift, resnet) and NCSN++ (skip, fourier).
"""

import dataclasses
import itertools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Num

from ddpm_jax.models import Model
from ddpm_jax.models.initializers import InitDistribution, param_spec
from ddpm_jax.models.layers import (
    GroupNorm,
    average_pool,
    check_image_size,
    conv,
    dense,
    embedding,
    fir_downsample,
    fir_upsample,
    sinusoidal_embedding,
    upsample_nearest,
)
from ddpm_jax.models.unet_blocks import (
    BlockSettings,
    MidBlock,
    ResampleKind,
    ResidualBlock,
    UNetLevel,
    ncsnpp_resampler,
    quarter,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNet(BlockSettings, Model):
    """Residual blocks with group norm, attention at chosen levels, learned down- and upsampling."""

    widths: tuple[int, ...] = (128, 256, 256, 256)
    """Channels of each level, the finest first; each further level halves the picture."""
    attention: tuple[bool, ...] = (False, True, False, False)
    """Which levels have self-attention; see also up_attention and middle."""
    layers_per_level: int = 2
    """Residual blocks a level on the way down; one more on the way up."""
    flip_sin_to_cos: bool = False
    freq_shift: float = 1.0
    symmetric_padding: bool = False
    """Pad the strided convolutions by 1 on all sides, instead of at the right and the bottom as DDPM does."""
    up_attention: tuple[bool, ...] = ()
    """Which levels have attention on the way up, the finest first; empty for those of the way down."""
    down_kinds: tuple[ResampleKind, ...] = ()
    """How each level goes down: strided convolution, residual block (resnet) or, as all finer ones, NCSN++ (skip)."""
    up_kinds: tuple[ResampleKind, ...] = ()
    """How each level is gone up to from, the finest first; empty for convolutions, as down_kinds."""
    time_embedding: Literal["sinusoidal", "fourier", "learned"] = "sinusoidal"
    """fourier: of log t at random frequencies, and the output is divided by t (Song et al. 2021)."""
    time_embedding_dim: int | None = None
    """Numbers of the time embedding; None for 4 times the first width."""
    timesteps: int | None = None
    """How many timesteps a learned time embedding has."""
    labels_are: Literal["classes", "numbers", "vectors"] = "classes"
    """numbers are embedded as t is, vectors are added to the time embedding; neither counts in num_classes."""
    center_input: bool = False
    """Take pictures in [0, 1] and bring them to [-1, 1] first."""

    def check(self) -> None:
        if min(self.widths, default=0) < 1:
            raise ValueError(
                f"widths must name at least one level, of at least 1 channel, not {self.widths}"
            )
        check_image_size(self.image_size, len(self.widths) - 1)
        for name in ("attention", "up_attention", "down_kinds", "up_kinds"):
            count = len(getattr(self, name))
            if count != len(self.widths) and (count or name == "attention"):
                raise ValueError(f"{name} names {count} levels, but widths has {len(self.widths)}")
        if (self.time_embedding == "learned") != (self.timesteps is not None):
            raise ValueError("timesteps is for a learned time embedding: give both or neither")
        if self.labels_are != "classes" and self.num_classes is not None:
            raise ValueError(
                f"num_classes is for labels that are classes, not {self.labels_are}: leave it out"
            )
        self._check_skip()

    def _check_skip(self) -> None:
        # The coarsest level goes down to none, so its kind says only how its blocks are normed.
        for name, kinds in (("down_kinds", self.down_kinds[:-1]), ("up_kinds", self.up_kinds)):
            if any(finer != "skip" == coarser for finer, coarser in itertools.pairwise(kinds)):
                raise ValueError(
                    f"{name}: all levels finer than a skip level must be skip too, not {kinds}"
                )
        quarters = self.groups is None or "skip" in self.down_kinds + self.up_kinds
        if quarters and min(self.widths) < 4:
            raise ValueError(
                f"norms of a quarter of the channels need widths of at least 4, not {self.widths}"
            )

    def module(self) -> nn.Module:
        return UNetModule(self, name="unet")

    @property
    def down_levels(self) -> list[tuple[int, bool, ResampleKind]]:
        """Width, attention and kind of each level on the way down, the finest first."""
        return list(
            zip(self.widths, self.attention, self.down_kinds or self._convolutions, strict=True)
        )

    @property
    def up_levels(self) -> list[tuple[int, bool, ResampleKind]]:
        """The same on the way up."""
        attention, kinds = self.up_attention or self.attention, self.up_kinds or self._convolutions
        return list(zip(self.widths, attention, kinds, strict=True))

    @property
    def _convolutions(self) -> tuple[ResampleKind, ...]:
        kind: ResampleKind = "conv"
        return (kind,) * len(self.widths)


class UNetModule(nn.Module):
    """The whole net; see `UNet` for the hyperparameters."""

    net: UNet

    @nn.compact
    def __call__(
        self,
        xt: Float[Array, "b h w c"],
        t: Num[Array, " b"],
        labels: Num[Array, "b ..."] | None,
        keys: Key[Array, " b"] | None,
    ) -> Float[Array, "b h w out"]:
        net = self.net
        emb = self._embed(t, labels).astype(xt.dtype)
        xt = 2 * xt - 1 if net.center_input else xt
        h = conv(xt, net.widths[0], 3, "conv_in", init=net.init_scheme)
        h, skips = self._down(h, xt, emb, keys)
        h = h if net.middle == "none" else MidBlock(net, name="middle")(h, emb, keys)
        h, picture = self._up(h, skips, emb, keys)
        h = nn.silu(GroupNorm(net.groups_of(h.shape[-1]), net.norm_eps, name="norm_out")(h))
        h = conv(h, net.out_channels, 3, "conv_out", init=net.init_scheme, zero=True)
        h = h if picture is None else h + picture
        if net.time_embedding == "fourier":
            h = h.astype(jnp.float32) / t.astype(jnp.float32)[:, None, None, None]
        return h

    def _embed(self, t, labels):
        net = self.net
        width = net.time_embedding_dim or 4 * net.widths[0]
        if net.labels_are == "classes" and net.num_classes is None:
            return self._project(self._waves(t), width, "time_linear")
        if labels is None:
            kind = (
                f"{net.num_classes} classes"
                if net.labels_are == "classes"
                else f"{net.labels_are} as labels"
            )
            raise ValueError(f"this net was made for {kind}: give it labels")
        if net.labels_are == "numbers":
            # Fractions as float32, in which the waves are drawn; a learned embedding takes whole numbers alone.
            whole = all(jnp.issubdtype(x.dtype, jnp.integer) for x in (t, labels))
            both = jnp.concatenate([t, labels], dtype=jnp.int32 if whole else jnp.float32)
            waves, of_labels = jnp.split(self._waves(both), 2)
            return self._project(waves, width, "time_linear") + self._project(
                of_labels, width, "class_linear"
            )
        emb = self._project(self._waves(t), width, "time_linear")
        vectors = net.labels_are == "vectors"
        return emb + (labels.reshape(len(labels), -1) if vectors else self._classes(labels, width))

    def _classes(self, labels, width):
        return embedding(labels, self.net.label_count, width, "class_embedding")

    def _waves(self, t):
        net, width = self.net, self.net.widths[0]
        if net.time_embedding == "sinusoidal":
            return sinusoidal_embedding(
                t, width, flip_sin_to_cos=net.flip_sin_to_cos, freq_shift=net.freq_shift
            )
        if net.time_embedding == "learned":
            return embedding(t, net.timesteps, width, "time_table")
        frequencies = self.param(
            "time_frequencies", param_spec(InitDistribution("normal", 16.0)), (width,), jnp.float32
        )
        angles = (
            jnp.log(t.astype(jnp.float32))[:, None]
            * jax.lax.stop_gradient(frequencies)[None]
            * 2
            * jnp.pi
        )
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)

    def _project(self, waves, width, name):
        hidden = nn.silu(dense(waves, width, f"{name}_1", init=self.net.init_scheme))
        return dense(hidden, width, f"{name}_2", init=self.net.init_scheme)

    def _down(self, h, picture, emb, keys):
        net, skips = self.net, [h]
        for i, (width, attention, kind) in enumerate(net.down_levels):
            level = UNetLevel(net, width, attention, kind == "skip", name=f"down_{i}")
            skips += level(skips[-1], emb, keys, (None,) * net.layers_per_level)
            name = f"downsample_{i}"
            if i + 1 == len(net.widths):
                continue
            if kind == "conv":
                h = conv(
                    skips[-1],
                    width,
                    3,
                    name,
                    init=net.init_scheme,
                    halve=0 if net.symmetric_padding else 1,
                )
            elif kind == "resnet":
                h = ResidualBlock(net, width, resample=average_pool, name=name)(
                    skips[-1], emb, keys
                )
            else:
                picture = fir_downsample(picture)
                h = ncsnpp_resampler(net, width, fir_downsample, name)(skips[-1], emb, keys)
                h = h + conv(picture, width, 1, f"down_picture_{i}", init=net.init_scheme)
            skips.append(h)
        return skips[-1], skips

    def _up(self, h, skips, emb, keys):
        net, count, picture = self.net, self.net.layers_per_level + 1, None
        for i, (width, attention, kind) in reversed(list(enumerate(net.up_levels))):
            here = tuple(reversed(skips[-count:]))
            skips = skips[:-count]
            h = UNetLevel(net, width, attention, kind == "skip", name=f"up_{i}")(
                h, emb, keys, here
            )[-1]
            if kind == "skip" and picture is not None:
                picture = fir_upsample(picture)
            name = f"upsample_{i}"
            if i == 0:
                continue
            if kind == "conv":
                h = conv(upsample_nearest(h), width, 3, name, init=net.init_scheme)
            elif kind == "resnet":
                h = ResidualBlock(net, width, resample=upsample_nearest, name=name)(h, emb, keys)
            else:
                part = nn.silu(
                    GroupNorm(quarter(width), net.norm_eps, name=f"up_picture_norm_{i}")(h)
                )
                part = conv(
                    part, net.out_channels, 3, f"up_picture_{i}", init=net.init_scheme, zero=True
                )
                picture = part if picture is None else picture + part
                h = ncsnpp_resampler(net, width, fir_upsample, name)(h, emb, keys)
        return h, picture
