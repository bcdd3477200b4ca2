"""Layers that the networks share.

Images are NHWC. A layer computes in the dtype of its input; parameters are float32.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Num

from ddpm_jax import draws
from ddpm_jax.errors import check_shape
from ddpm_jax.image_size import ImageSize, sides, size_text
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
from ddpm_jax.models.kernels.winograd import direct as direct3x3


def conv(
    x: Array,
    features: int,
    size: int,
    name: str,
    *,
    init: Init,
    zero: bool = False,
    stride_offset: int | None = None,
    direct: bool = False,
) -> Array:
    """Apply a size x size convolution to x (b, h, w, c), padded to keep its size.

    `zero` makes the kernel start at 0 under the ddpm init. `stride_offset` 0 or 1 sets the stride
    to 2 and is the first row and column kept; it is for 3x3 convolutions only (see `conv3x3`).
    `direct` leaves 3x3 convolutions to XLA (see `WIDEST_WINOGRAD`).
    """
    fan_in = size * size * x.shape[-1]
    fan_out = size * size * features
    kernel, bias = init_distributions(init, fan_in, fan_out, zero)
    options: dict[str, Any] = {"kernel_init": param_spec(kernel), "bias_init": param_spec(bias)}
    if size in CONVOLUTIONS:
        convolve = direct3x3 if direct and size == 3 else CONVOLUTIONS[size]
        options["conv_general_dilated"] = lambda x, kernel, *_, **__: convolve(
            x, kernel, stride_offset=stride_offset
        )
    return nn.Conv(features, (size, size), dtype=x.dtype, name=name, **options)(x)


def conv1x1(
    x: Float[Array, "b h w i"], kernel: Float[Array, "1 1 i o"], stride_offset: None = None
) -> Float[Array, "b h w o"]:
    """Multiply each pixel by the kernel.

    On a CPU the gradient of XLA's own 1x1 convolution is several times slower.
    """
    pixels = x.reshape(-1, x.shape[-1])  # (b * h * w, i)
    return matmul(pixels, kernel[0, 0]).reshape(*x.shape[:-1], -1)


CONVOLUTIONS: dict[int, Callable] = {1: conv1x1, 3: conv3x3}
"""Replacements for XLA's convolution, by kernel size."""

WIDEST_WINOGRAD = 256
"""The largest width of a network of latents, or of an autoencoder, with Winograd's convolutions.

A wider one is Stable Diffusion's own: its transformed weights and tiles would take several GiB
(tests/parity/stable_diffusion.py).
"""


def dense(
    x: Array,
    features: int,
    name: str,
    *,
    init: Init,
    zero: bool = False,
    use_bias: bool = True,
) -> Array:
    """Apply a linear layer to the last axis of x.

    `zero` makes the kernel start at 0 under the ddpm init.
    """
    kernel, bias = init_distributions(init, x.shape[-1], features, zero)
    options: dict[str, Any] = {"kernel_init": param_spec(kernel), "bias_init": param_spec(bias)}
    options["dot_general"] = lambda x, kernel, *_, **__: matmul(x, kernel)
    layer = nn.Dense(features, use_bias, dtype=x.dtype, name=name, **options)
    rows = x.reshape(-1, x.shape[-1])  # (n, c)
    return layer(rows).reshape(*x.shape[:-1], features)


def embedding(
    labels: Array, num_embeddings: int, features: int, name: str, std: float = 1.0
) -> Array:
    """Look up a learned vector (features,) per label, initialised from N(0, std^2).

    A label out of range gives NaN. Raise ValueError for labels that are not integers.
    """
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"The labels of a table must be integers, not {labels.dtype}: cast them.")
    init = param_spec(InitDistribution("normal", std))
    table = nn.Embed(num_embeddings, features, embedding_init=init, name=name).embedding
    # nn.Embed itself cannot look up sharded labels.
    return table.at[labels].get(mode="fill", out_sharding=jax.typeof(labels).sharding)


def sinusoidal_embedding(
    t: Num[Array, " b"],
    dim: int,
    *,
    layout: Literal["concatenated", "interleaved"] = "concatenated",
    flip_sin_to_cos: bool = False,
    freq_shift: float = 1.0,
    max_period: float = 10_000.0,
) -> Float[Array, "b dim"]:
    """Sines and cosines of t at dim/2 frequencies max_period^(-i / (dim/2 - freq_shift)).

    t may be float. Layout concatenated is [sin..., cos...] as in the DDPM code, or [cos..., sin...]
    with `flip_sin_to_cos`. Layout interleaved is [sin0, cos0, sin1, cos1, ...] (Vaswani et al.
    2017, section 3.5, with freq_shift 0). Raise ValueError if dim is odd.
    """
    if dim % 2:
        raise ValueError(f"A sinusoidal embedding needs an even dim, not {dim}.")
    half = dim // 2
    exponents = -np.log(max_period) * np.arange(half) / (half - freq_shift)
    frequencies = np.exp(exponents).astype(np.float32)  # (dim / 2,)
    angles = t.astype(jnp.float32)[:, None] * frequencies[None]  # (b, dim / 2)
    waves = [jnp.sin(angles), jnp.cos(angles)]
    if flip_sin_to_cos:
        waves = waves[::-1]
    if layout == "concatenated":
        return jnp.concatenate(waves, -1)
    return jnp.stack(waves, -1).reshape(-1, dim)  # (b, dim / 2, 2) -> (b, dim)


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
    (benchmarks/chips.py). There is no pilot: x is rounded already, which changes more than the
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
        scale = self.param("scale", param_spec(ONES), (channels,), jnp.float32)
        bias = self.param("bias", param_spec(ZEROS), (channels,), jnp.float32)
        # The narrow dtypes are for GPUs and TPUs: a CPU is slower with them.
        normalise = group_norm if x.dtype == jnp.float32 else group_norm_of_few_kernels
        return normalise(x, scale, bias, self.groups, self.eps, offset)


def dropout(
    x: Float[Array, "b ..."], rate: float, keys: Key[Array, " b"] | None
) -> Float[Array, "b ..."]:
    """Set a fraction `rate` of the entries of x to 0 and scale the others by 1 / (1 - rate).

    Each example's mask is drawn from its own key. Without keys, or with rate 0, x is unchanged.
    The rate is rounded to a multiple of 2^-16, because a mask uses 16 random bits per entry.
    """
    if keys is None or rate == 0.0:
        return x
    dropped = min(round(rate * 2**16), 2**16 - 1)
    check_shape(x.shape[:1], keys=keys)
    bits = draws.bits16(keys, x.shape[1:])  # (b, ...)
    gain = jnp.asarray(2**16 / (2**16 - dropped), x.dtype)
    return jnp.where(bits >= dropped, x * gain, jnp.zeros_like(x))


def module_keys(module: nn.Module, keys: Key[Array, " b"] | None) -> Key[Array, " b"] | None:
    """The keys of one module: the key of each example, folded with the module's path."""
    return None if keys is None else draws.fold_in_name(keys, "/".join(module.path))


def upsample_nearest(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
    """Repeat every pixel of x twice in both directions."""
    b, h, w, c = x.shape
    return merge_blocks(jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)))


def average_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h//2 w//2 c"]:
    """The mean of each 2x2 block."""
    return _blocks(x).mean((2, 4))


def fir_downsample(x: Float[Array, "b h w c"]) -> Float[Array, "b h//2 w//2 c"]:
    """Every other pixel of x, smoothed by (1, 3, 3, 1) / 8 in both directions (Zhang 2019)."""
    return _fir(x, 1.0, window_strides=(2, 2), padding=((1, 1), (1, 1)))


def fir_upsample(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
    """x with zeros between its pixels, smoothed by 4 times the filter of `fir_downsample`."""
    return _fir(x, 4.0, window_strides=(1, 1), padding=((2, 2), (2, 2)), lhs_dilation=(2, 2))


def _fir(x: Array, gain: float, **options: Any) -> Array:
    channels = x.shape[-1]
    taps = np.array([1, 3, 3, 1]) / 8
    window = (gain * np.outer(taps, taps))[:, :, None, None]  # (4, 4, 1, 1)
    kernel = jnp.asarray(np.tile(window, channels), x.dtype)  # (4, 4, 1, c)
    options |= {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": channels}
    return jax.lax.conv_general_dilated(x, kernel, **options)


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h//2 w//2 c"]:
    """The maximum of each 2x2 block."""
    return _blocks(x).max((2, 4))


# With explicit sharding, JAX splits or merges only one axis per reshape.
def _blocks(x: Float[Array, "b h w c"]) -> Float[Array, "b h//2 2 w//2 2 c"]:
    """Split x into 2x2 blocks."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w, c).reshape(b, h // 2, 2, w // 2, 2, c)


def merge_blocks(blocks: Float[Array, "b h 2 w 2 c"]) -> Float[Array, "b 2*h 2*w c"]:
    """Merge 2x2 blocks into an image."""
    b, h, _, w, _, c = blocks.shape
    return blocks.reshape(b, 2 * h, w, 2, c).reshape(b, 2 * h, 2 * w, c)


def check_image_size(image_size: ImageSize, halvings: int) -> None:
    """Raise ValueError, with sizes that fit, unless image_size can be halved `halvings` times."""
    unit = 2**halvings
    height, width = sides(image_size)
    if height % unit == 0 and width % unit == 0:
        return
    remedy = f"a multiple of {unit}, such as {_multiples(height, unit)}"
    if height != width:
        remedy = (
            f"multiples of {unit}, such as a height of {_multiples(height, unit)} and a width of "
            f"{_multiples(width, unit)}"
        )
    raise ValueError(
        f"Image size {size_text(image_size)} does not fit a network that halves it {halvings} "
        f"times: use {remedy}."
    )


def _multiples(side: int, unit: int) -> str:
    """The multiples of `unit` that are nearest to a side: one if it is a multiple, else two."""
    below = side // unit * unit
    nearest = [below] if side == below else [below, below + unit]
    return " or ".join(str(size) for size in nearest if size)


def check_unconditional(name: str, **settings: object) -> None:
    """Raise ValueError if a setting of a condition is set, for a network that takes none."""
    for setting, value in settings.items():
        if value:
            raise ValueError(f"{name} takes no condition: leave {setting} out, or use the UNet.")
