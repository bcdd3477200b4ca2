"""The DDPM U-Net (Ho et al. 2020, appendix B), with the same parameters as diffusers' UNet2DModel.

With other settings it is also the U-Net of Dhariwal & Nichol 2021 (resnet, scale_shift) or NCSN++
(skip, fourier).
"""

import dataclasses
import itertools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Num

from ddpm_jax.models import Model
from ddpm_jax.models.initializers import InitDistribution, parameter
from ddpm_jax.models.layers import (
    average_pool,
    conv,
    dense,
    embedding,
    fir_downsample,
    fir_upsample,
    sinusoidal_embedding,
    upsample_nearest,
)
from ddpm_jax.models.norms import GroupNorm
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
    """Channels of each level, finest first. Each further level halves the image size."""
    attention: tuple[bool, ...] = (False, True, False, False)
    """Which levels have self-attention, finest first. See also up_attention and middle."""
    layers_per_level: int = 2
    """Residual blocks per level on the way down. The way up has one more per level."""
    flip_sin_to_cos: bool = False
    """Put the cosines of the sinusoidal time embedding before the sines."""
    freq_shift: float = 1.0
    """The frequencies of the time embedding are 10000^(-i / (widths[0]/2 - freq_shift))."""
    symmetric_padding: bool = False
    """Pad strided convolutions by 1 on all sides, not only right and bottom as DDPM does."""
    up_attention: tuple[bool, ...] = ()
    """Which levels have self-attention on the way up, finest first; empty for `attention`."""
    down_kinds: tuple[ResampleKind, ...] = ()
    """How each level is downsampled, finest first; empty for conv everywhere.

    conv: strided convolution. resnet: residual block. skip: NCSN++'s residual block and image
    pyramid; all levels finer than a skip level must be skip too.
    """
    up_kinds: tuple[ResampleKind, ...] = ()
    """How each level is upsampled to the next finer one, as in down_kinds, finest first."""
    time_embedding: Literal["sinusoidal", "fourier", "learned"] = "sinusoidal"
    """fourier: log t at random frequencies, and the output is divided by t (Song et al. 2021).

    learned: a table of `timesteps` rows.
    """
    time_embedding_dim: int | None = None
    """Width of the time embedding; None for 4 times the first width."""
    timesteps: int | None = None
    """Number of timesteps of a learned time embedding; None for the other kinds."""
    labels_are: Literal["classes", "numbers", "vectors"] = "classes"
    """classes: embedded by a table. numbers: embedded like t. vectors: added to the time embedding.

    num_classes is for classes only.
    """
    center_input: bool = False
    """Take images in [0, 1] and map them to [-1, 1] first."""

    @property
    def halvings(self) -> int:
        return len(self.widths) - 1

    @property
    def takes_labels(self) -> bool:
        return super().takes_labels or self.labels_are != "classes"

    def check(self) -> None:
        for name in ("attention", "up_attention", "down_kinds", "up_kinds"):
            num_levels = len(getattr(self, name))
            may_be_empty = name != "attention"
            if num_levels != len(self.widths) and (num_levels or not may_be_empty):
                raise ValueError(
                    f"{name} names {num_levels} levels, but widths has {len(self.widths)}: "
                    "give one value per level."
                )
        if (self.time_embedding == "learned") != (self.timesteps is not None):
            raise ValueError("timesteps is for a learned time embedding: set both or neither.")
        if self.labels_are != "classes" and self.num_classes is not None:
            raise ValueError(
                f"num_classes is for labels that are classes, not {self.labels_are}: leave it out."
            )
        if self.labels_are != "classes" and self._takes_dict:
            raise ValueError(
                f"A condition of several parts needs labels that are classes, not "
                f"{self.labels_are}: leave labels_are out."
            )
        if self.center_input and self.condition_channels is not None:
            raise ValueError("center_input would also shift the condition image: leave one out.")
        self._check_skip()

    def _check_skip(self) -> None:
        # The coarsest level is not downsampled: its kind only sets its blocks' norms and scale.
        for name, kinds in (("down_kinds", self.down_kinds[:-1]), ("up_kinds", self.up_kinds)):
            for finer, coarser in itertools.pairwise(kinds):
                if coarser == "skip" and finer != "skip":
                    raise ValueError(
                        f"{name}: all levels finer than a skip level must be skip too, not {kinds}."
                    )
        uses_quarters = self.groups is None or "skip" in self.down_kinds + self.up_kinds
        if uses_quarters and min(self.widths) < 4:
            raise ValueError(
                "Norms with a quarter of the channels as groups need widths of at least 4, "
                f"not {self.widths}."
            )

    def module(self) -> nn.Module:
        return UNetModule(self, name="unet")

    @property
    def down_levels(self) -> list[tuple[int, bool, ResampleKind]]:
        """The width, attention and kind of each level on the way down, finest first."""
        kinds = self.down_kinds or self._all_conv
        return list(zip(self.widths, self.attention, kinds, strict=True))

    @property
    def up_levels(self) -> list[tuple[int, bool, ResampleKind]]:
        """The width, attention and kind of each level on the way up, finest first."""
        attention = self.up_attention or self.attention
        kinds = self.up_kinds or self._all_conv
        return list(zip(self.widths, attention, kinds, strict=True))

    @property
    def _all_conv(self) -> tuple[ResampleKind, ...]:
        kind: ResampleKind = "conv"
        return (kind,) * len(self.widths)


class UNetModule(nn.Module):
    """The Linen module of `UNet`."""

    net: UNet

    @nn.compact
    def __call__(
        self,
        xt: Float[Array, "b h w c"],
        t: Num[Array, " b"],
        labels: Num[Array, "b ..."] | None,
        keys: Key[Array, " b"] | None,
        numbers: Float[Array, "b m"] | None = None,
    ) -> Float[Array, "b h w out"]:
        net = self.net
        emb = self._embed(t, labels)  # (b, d)
        if numbers is not None:
            emb = emb + self._project(numbers, emb.shape[-1], "condition_linear")
        emb = emb.astype(xt.dtype)
        if net.center_input:
            xt = 2 * xt - 1
        h = conv(xt, net.widths[0], 3, "conv_in", init=net.init_scheme)  # (b, h, w, widths[0])
        h, skips = self._down(h, xt, emb, keys)  # h: (b, h / 2**last, w / 2**last, widths[last])
        if net.middle != "none":
            h = MidBlock(net, name="middle")(h, emb, keys)
        h, image = self._up(h, skips, emb, keys)  # h: (b, h, w, widths[0])
        norm_out = GroupNorm(net.groups_of(h.shape[-1]), net.norm_eps, name="norm_out")
        h = nn.silu(norm_out(h))
        h = conv(h, net.out_channels, 3, "conv_out", init=net.init_scheme, zero=True)
        if image is not None:
            h = h + image
        if net.time_embedding == "fourier":
            h = h.astype(jnp.float32) / t.astype(jnp.float32)[:, None, None, None]
        return h  # (b, h, w, out)

    def _embed(self, t, labels):
        """The embedding (b, d) of t, plus an embedding of the labels if the network takes any."""
        net = self.net
        width = net.time_embedding_dim or 4 * net.widths[0]
        if net.labels_are == "classes" and net.num_classes is None:
            return self._project(self._waves(t), width, "time_linear")
        if labels is None:
            kind = f"{net.labels_are} as labels"
            if net.labels_are == "classes":
                kind = f"{net.num_classes} classes"
            raise ValueError(f"This network was made for {kind}: give it labels.")
        if net.labels_are == "numbers":
            # A learned embedding takes integers only. Anything else is float32, like the waves.
            is_whole = all(jnp.issubdtype(x.dtype, jnp.integer) for x in (t, labels))
            numbers = jnp.concatenate([t, labels], dtype=jnp.int32 if is_whole else jnp.float32)
            # One call for both, because `_waves` may create its parameters only once.
            t_waves, label_waves = jnp.split(self._waves(numbers), 2)  # (2 * b, d) -> each (b, d)
            t_emb = self._project(t_waves, width, "time_linear")
            return t_emb + self._project(label_waves, width, "class_linear")
        emb = self._project(self._waves(t), width, "time_linear")
        if net.labels_are == "vectors":
            return emb + labels.reshape(labels.shape[0], -1)
        return emb + embedding(labels, net.label_count, width, "class_embedding")

    def _waves(self, t):
        """The first layer of the time embedding: (b, widths[0]), or twice as wide for fourier."""
        net = self.net
        width = net.widths[0]
        if net.time_embedding == "sinusoidal":
            return sinusoidal_embedding(
                t, width, flip_sin_to_cos=net.flip_sin_to_cos, freq_shift=net.freq_shift
            )
        if net.time_embedding == "learned":
            return embedding(t, net.timesteps, width, "time_table")
        init = InitDistribution("normal", 16.0)
        frequencies = parameter(self, "time_frequencies", init, (width,))
        log_t = jnp.log(t.astype(jnp.float32))[:, None]  # (b, 1)
        angles = log_t * jax.lax.stop_gradient(frequencies)[None] * 2 * jnp.pi  # (b, width)
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)  # (b, 2 * width)

    def _project(self, waves, width, name):
        hidden = nn.silu(dense(waves, width, f"{name}_1", init=self.net.init_scheme))
        return dense(hidden, width, f"{name}_2", init=self.net.init_scheme)

    def _down(self, h, image, emb, keys):
        """The last state, and the list of all states, which are the skips on the way up.

        `image` is the network's input, which skip levels downsample and add.
        """
        net = self.net
        skips = [h]
        for i, (width, attention, kind) in enumerate(net.down_levels):
            level = UNetLevel(net, width, attention, kind == "skip", name=f"down_{i}")
            skips += level(skips[-1], emb, keys, (None,) * net.layers_per_level)
            if i + 1 == len(net.widths):
                break
            # (b, h, w, width) -> (b, h / 2, w / 2, width)
            h = skips[-1]
            name = f"downsample_{i}"
            if kind == "conv":
                stride_offset = 0 if net.symmetric_padding else 1
                h = conv(h, width, 3, name, init=net.init_scheme, stride_offset=stride_offset)
            elif kind == "resnet":
                h = ResidualBlock(net, width, resample=average_pool, name=name)(h, emb, keys)
            else:
                image = fir_downsample(image)
                h = ncsnpp_resampler(net, width, fir_downsample, name)(h, emb, keys)
                h = h + conv(image, width, 1, f"down_picture_{i}", init=net.init_scheme)
            skips.append(h)
        return skips[-1], skips

    def _up(self, h, skips, emb, keys):
        """The last state, and the sum of the images that skip levels output, or None."""
        net = self.net
        blocks_per_level = net.layers_per_level + 1
        image = None
        for i, (width, attention, kind) in reversed(list(enumerate(net.up_levels))):
            level_skips = tuple(reversed(skips[-blocks_per_level:]))
            skips = skips[:-blocks_per_level]
            level = UNetLevel(net, width, attention, kind == "skip", name=f"up_{i}")
            h = level(h, emb, keys, level_skips)[-1]
            if kind == "skip" and image is not None:
                image = fir_upsample(image)
            if i == 0:
                break
            # (b, h, w, width) -> (b, 2 * h, 2 * w, width)
            name = f"upsample_{i}"
            if kind == "conv":
                h = conv(upsample_nearest(h), width, 3, name, init=net.init_scheme)
            elif kind == "resnet":
                h = ResidualBlock(net, width, resample=upsample_nearest, name=name)(h, emb, keys)
            else:
                norm = GroupNorm(quarter(width), net.norm_eps, name=f"up_picture_norm_{i}")
                part_name = f"up_picture_{i}"
                part = nn.silu(norm(h))
                # (b, h, w, width) -> (b, h, w, out)
                part = conv(part, net.out_channels, 3, part_name, init=net.init_scheme, zero=True)
                image = part if image is None else image + part
                h = ncsnpp_resampler(net, width, fir_upsample, name)(h, emb, keys)
        return h, image
