"""Normalisation over groups of channels, and over the channels of each vector."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.models.initializers import ONES, ZEROS, parameter


@partial(jax.jit, static_argnums=(3, 4))
def group_norm(
    x: Float[Array, "b h w c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    groups: int,
    eps: float,
    offset: Float[Array, "b c"] | None = None,
) -> Float[Array, "b h w c"]:
    """Normalise x over (h, w) and the channels of each group, then scale and shift each channel.

    Group normalisation, Wu & He 2018. Statistics are float32 sums per channel over (h, w), combined
    per group afterwards: on a CPU this is faster than a reduction over (h, w, channels of the
    group) (benchmarks/layers.py). `offset` is added to each channel of x first.
    """
    b = x.shape[0]
    c = x.shape[-1]
    if offset is not None:
        x = x + offset[:, None, None]
    wide = x.astype(jnp.float32)
    # Plain sums of squares have an error of 1e-3 if |mean| = 30 std, so a pilot pixel is subtracted
    # first. The result does not depend on the pilot, so it needs no gradient.
    pilot = jax.lax.stop_gradient(wide[:, :1, :1])  # (b, 1, 1, c)
    about_pilot = wide - pilot  # (b, h, w, c)
    mean = jnp.mean(about_pilot, (1, 2))  # (b, c)
    variance = jnp.mean(about_pilot**2, (1, 2)) - mean**2  # (b, c)
    # The two barriers keep XLA from repeating the arithmetic per channel for every pixel.
    mean, variance = jax.lax.optimization_barrier((mean, variance))
    mean = (mean + pilot[:, 0, 0]).reshape(b, groups, -1)  # (b, groups, c / groups)
    group_mean = jnp.mean(mean, -1, keepdims=True)  # (b, groups, 1)
    # Law of total variance: the mean variance within the channels, plus the variance between them.
    channel_terms = variance.reshape(mean.shape) + (mean - group_mean) ** 2
    group_variance = jnp.mean(channel_terms, -1, keepdims=True)  # (b, groups, 1)
    gain = jax.lax.rsqrt(group_variance + eps) * scale.reshape(1, groups, -1)
    shift = bias.reshape(1, groups, -1) - group_mean * gain  # (b, groups, c / groups)
    gain = gain.reshape(b, c)[:, None, None]  # (b, 1, 1, c)
    shift = shift.reshape(b, c)[:, None, None]
    gain, shift = jax.lax.optimization_barrier((gain, shift))
    return (wide * gain + shift).astype(x.dtype)


@partial(jax.jit, static_argnums=(3, 4))
def group_norm_of_few_kernels(
    x: Float[Array, "b h w c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    groups: int,
    eps: float,
    offset: Float[Array, "b c"] | None = None,
) -> Float[Array, "b h w c"]:
    """`group_norm` for narrow dtypes on a GPU: x plus its offset is never written.

    A residual block of cifar10 and its gradient take 49 kernels and 1.26 GB, not 59 and 1.36 GB
    (docs/chips.md). There is no pilot: x is rounded already, which changes more than the
    error of a plain sum of squares.
    """
    b, h, w, _ = x.shape
    x_by_group = x.astype(jnp.float32).reshape(b, h, w, groups, -1)
    mean = jnp.mean(x_by_group, (1, 2))  # (b, groups, c / groups)
    square = jnp.mean(x_by_group**2, (1, 2))
    offset = jnp.zeros_like(mean) if offset is None else offset.astype(jnp.float32)
    offset = offset.reshape(mean.shape)
    # The moments of x + offset, from those of x.
    square = square + 2 * mean * offset + offset**2
    group_mean = jnp.mean(mean + offset, -1, keepdims=True)  # (b, groups, 1)
    group_square = jnp.mean(square, -1, keepdims=True)
    # Rounding would make the variance of a constant negative.
    variance = jnp.maximum(group_square - group_mean**2, 0.0)
    gain = jax.lax.rsqrt(variance + eps) * scale.reshape(1, groups, -1)
    shift = bias.reshape(1, groups, -1) + (offset - group_mean) * gain  # (b, groups, c / groups)
    # The gradients of scale and bias would take sums over x of their own without the barrier.
    gain, shift = jax.lax.optimization_barrier((gain, shift))
    normed = x_by_group * gain[:, None, None] + shift[:, None, None]
    return normed.astype(x.dtype).reshape(x.shape)


class GroupNorm(nn.Module):
    """Group normalisation of x plus an offset per channel.

    Raise ValueError if the groups do not divide the channels.
    """

    groups: int = 32
    eps: float = 1e-5

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], offset: Float[Array, "b c"] | None = None
    ) -> Float[Array, "b h w c"]:
        channels = x.shape[-1]
        if channels % self.groups:
            raise ValueError(
                f"{self.groups} groups do not divide {channels} channels: "
                "change the groups or the width."
            )
        scale = parameter(self, "scale", ONES, (channels,))
        bias = parameter(self, "bias", ZEROS, (channels,))
        # The narrow dtypes are for GPUs and TPUs: a CPU is slower with them.
        normalise = group_norm if x.dtype == jnp.float32 else group_norm_of_few_kernels
        return normalise(x, scale, bias, self.groups, self.eps, offset)


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis, Ba et al. 2016, in float32."""

    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        channels = x.shape[-1]
        scale = parameter(self, "scale", ONES, (channels,))
        bias = parameter(self, "bias", ZEROS, (channels,))
        rows = x.astype(jnp.float32).reshape(-1, channels)
        centred = rows - jnp.mean(rows, -1, keepdims=True)
        variance = jnp.mean(centred**2, -1, keepdims=True)
        normed = centred * jax.lax.rsqrt(variance + self.eps) * scale[None] + bias[None]
        return normed.astype(x.dtype).reshape(x.shape)
