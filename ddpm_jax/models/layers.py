"""Layers that the networks share. Images are NHWC; `dtype` is what a layer computes in, parameters are float32."""

import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Num

from ddpm_jax.models.initializers import (
    ONES,
    ZEROS,
    Init,
    InitDistribution,
    init_distributions,
    param_spec,
)
from ddpm_jax.models.kernels.matmul import matmul
from ddpm_jax.models.kernels.winograd import conv3x3


def conv(
    x: Array,
    features: int,
    size: int,
    name: str,
    *,
    init: Init,
    zero: bool = False,
    halve: int | None = None,
) -> Array:
    """A size x size convolution of x (b, h, w, c) that keeps its size, or with `halve` every other pixel from there on.

    `zero`: its kernel starts at 0 under the ddpm init.
    """
    kernel, bias = init_distributions(init, size * size * x.shape[-1], size * size * features, zero)
    options: dict[str, Any] = {"kernel_init": param_spec(kernel), "bias_init": param_spec(bias)}
    if size in CONVOLUTIONS:
        options["conv_general_dilated"] = lambda x, kernel, *_, **__: CONVOLUTIONS[size](
            x, kernel, halve
        )
    return nn.Conv(features, (size, size), dtype=x.dtype, name=name, **options)(x)


def conv1x1(
    x: Float[Array, "b h w i"], kernel: Float[Array, "1 1 i o"], halve: None = None
) -> Float[Array, "b h w o"]:
    """The product of each pixel with the kernel: on a CPU, the gradient of XLA's own is several times slower."""
    return matmul(x.reshape(-1, x.shape[-1]), kernel[0, 0]).reshape(*x.shape[:-1], -1)


CONVOLUTIONS: dict[int, Callable] = {1: conv1x1, 3: conv3x3}


def dense(x: Array, features: int, name: str, *, init: Init, zero: bool = False) -> Array:
    """A linear map of the last axis of x."""
    kernel, bias = init_distributions(init, x.shape[-1], features, zero)
    options: dict[str, Any] = {"kernel_init": param_spec(kernel), "bias_init": param_spec(bias)}
    options["dot_general"] = lambda x, kernel, *_, **__: matmul(x, kernel)
    layer = nn.Dense(features, dtype=x.dtype, name=name, **options)
    return layer(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], features)


def embedding(labels: Array, count: int, features: int, name: str) -> Array:
    """One learned vector (features,) for each of `count` classes, N(0, 1) at first."""
    return nn.Embed(
        count, features, embedding_init=param_spec(InitDistribution("normal", 1.0)), name=name
    )(labels)


def sinusoidal_embedding(
    t: Num[Array, " b"],
    dim: int,
    *,
    layout: Literal["concatenated", "interleaved"] = "concatenated",
    flip_sin_to_cos: bool = False,
    freq_shift: float = 1.0,
    max_period: float = 10_000.0,
) -> Float[Array, "b dim"]:
    """Sines and cosines of t at dim/2 frequencies max_period^(-i / (dim/2 - freq_shift)); t may be float.

    concatenated: [sin..., cos...] as in the DDPM code, or [cos..., sin...] with `flip_sin_to_cos`.
    interleaved: [sin0, cos0, sin1, cos1, ...] (Vaswani et al. 2017, section 3.5, with freq_shift 0).
    Raises ValueError for an odd dim.
    """
    if dim % 2:
        raise ValueError(f"an embedding of sines and cosines needs an even dim, not {dim}")
    half = dim // 2
    frequencies = np.exp(-np.log(max_period) * np.arange(half) / (half - freq_shift)).astype(
        np.float32
    )
    angles = t.astype(jnp.float32)[:, None] * frequencies[None]
    waves = [jnp.sin(angles), jnp.cos(angles)]
    if flip_sin_to_cos:
        waves = waves[::-1]
    return (
        jnp.concatenate(waves, -1)
        if layout == "concatenated"
        else jnp.stack(waves, -1).reshape(-1, dim)
    )


@partial(jax.jit, static_argnums=(3, 4))
def group_norm(
    x: Float[Array, "b h w c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    groups: int,
    eps: float,
) -> Float[Array, "b h w c"]:
    """x normalised over (h, w) and the channels of each group (Wu & He 2018), then scaled and shifted a channel.

    Statistics are float32 sums a channel over (h, w), joined a group afterwards: on a CPU faster than a reduction
    over (h, w, channels of the group) (benchmarks/layers.py). They are taken about a pilot pixel, because plain sums of
    squares lose 1e-3 where |mean| = 30 std; the result does not depend on the pilot, so no gradient flows to it.
    The barriers keep XLA from doing the arithmetic of a channel anew for each pixel.
    """
    b, c = x.shape[0], x.shape[-1]
    wide = x.astype(jnp.float32)
    pilot = jax.lax.stop_gradient(wide[:, :1, :1])
    about_pilot = wide - pilot
    mean = jnp.mean(about_pilot, (1, 2))
    variance = jnp.mean(about_pilot**2, (1, 2)) - mean**2
    mean, variance = jax.lax.optimization_barrier((mean, variance))
    mean = (mean + pilot[:, 0, 0]).reshape(b, groups, -1)
    group_mean = jnp.mean(mean, -1, keepdims=True)
    # Law of total variance: within the channels, plus between them.
    group_variance = jnp.mean(
        variance.reshape(mean.shape) + (mean - group_mean) ** 2, -1, keepdims=True
    )
    gain = jax.lax.rsqrt(group_variance + eps) * scale.reshape(1, groups, -1)
    shift = bias.reshape(1, groups, -1) - group_mean * gain
    gain, shift = jax.lax.optimization_barrier(
        (gain.reshape(b, 1, 1, c), shift.reshape(b, 1, 1, c))
    )
    return (wide * gain + shift).astype(x.dtype)


class GroupNorm(nn.Module):
    """Group normalisation; raises ValueError if the groups do not divide the channels."""

    groups: int = 32
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        channels = x.shape[-1]
        if channels % self.groups:
            raise ValueError(
                f"{self.groups} groups do not divide {channels} channels: change the groups or the width"
            )
        scale = self.param("scale", param_spec(ONES), (channels,), jnp.float32)
        bias = self.param("bias", param_spec(ZEROS), (channels,), jnp.float32)
        return group_norm(x, scale, bias, self.groups, self.eps)


def dropout(
    x: Float[Array, "b ..."], rate: float, keys: Key[Array, " b"] | None
) -> Float[Array, "b ..."]:
    """x with a share `rate` of its entries 0 and the others scaled up; each example's mask comes from its own key.

    None for `keys` (or rate 0) leaves x alone. The rate is rounded to a multiple of 2^-16, as the random bits have it.
    """
    if keys is None or rate == 0.0:
        return x
    dropped = min(round(rate * 2**16), 2**16 - 1)
    bits = jax.vmap(lambda key: jax.random.bits(key, x.shape[1:], jnp.uint16))(keys)
    gain = jnp.asarray(2**16 / (2**16 - dropped), x.dtype)
    return jnp.where(bits >= dropped, x * gain, jnp.zeros_like(x))


def module_keys(module: nn.Module, keys: Key[Array, " b"] | None) -> Key[Array, " b"] | None:
    """The keys of one place in the net: those of the examples, folded with the module's path."""
    if keys is None:
        return None
    return jax.vmap(jax.random.fold_in, (0, None))(keys, zlib.crc32("/".join(module.path).encode()))


def upsample_nearest(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
    """x with every pixel doubled in both directions."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def average_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h//2 w//2 c"]:
    """The mean of each 2x2 block."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


def fir_downsample(x: Float[Array, "b h w c"]) -> Float[Array, "b h//2 w//2 c"]:
    """Every other pixel of x, smoothed by the filter (1, 3, 3, 1) / 8 in both directions (Zhang 2019)."""
    return _fir(x, 1.0, window_strides=(2, 2), padding=((1, 1), (1, 1)))


def fir_upsample(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
    """x with zeros between its pixels, smoothed by four times the same filter."""
    return _fir(x, 4.0, window_strides=(1, 1), padding=((2, 2), (2, 2)), lhs_dilation=(2, 2))


def _fir(x: Array, gain: float, **options: Any) -> Array:
    line = np.array([1, 3, 3, 1]) / 8
    kernel = jnp.asarray(
        np.tile((gain * np.outer(line, line))[:, :, None, None], x.shape[-1]), x.dtype
    )
    options |= {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": x.shape[-1]}
    return jax.lax.conv_general_dilated(x, kernel, **options)


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h//2 w//2 c"]:
    """The largest of each 2x2 block."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4))


def check_image_size(image_size: int, halvings: int) -> None:
    """Raises ValueError, naming the sizes that fit, unless image_size can be halved `halvings` times."""
    unit = 2**halvings
    if image_size < unit or image_size % unit:
        fitting = [
            size for size in (image_size // unit * unit, (image_size // unit + 1) * unit) if size
        ]
        raise ValueError(
            f"image size {image_size} does not fit a net that halves it {halvings} times: "
            f"use a multiple of {unit}, such as {' or '.join(map(str, fitting))}"
        )


def check_unconditional(num_classes: int | None, name: str) -> None:
    """Raises ValueError if a net that takes no labels was given classes."""
    if num_classes is not None:
        raise ValueError(f"{name} takes no class labels: leave num_classes out, or use the UNet")
