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
from ddpm_jax.models.initializers import (
    Init,
    InitDistribution,
    init_distributions,
    parameter,
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
    settings = _convolution(x.shape[-1], features, size, init, zero, stride_offset, direct)
    return _Affine(*settings, name=name)(x)


def conv_and_bias(
    x: Array,
    features: int,
    size: int,
    name: str,
    *,
    init: Init,
    zero: bool = False,
    direct: bool = False,
) -> tuple[Array, Float[Array, " features"]]:
    """Apply `conv` without adding its bias. Return the result and the bias.

    On a GPU a bias alone can take a pass over the result, and one that is added with another term
    takes none (docs/chips.md).
    """
    settings = _convolution(x.shape[-1], features, size, init, zero, None, direct)
    return _ProductAndBias(*settings, name=name)(x)


def _convolution(
    channels: int,
    features: int,
    size: int,
    init: Init,
    zero: bool,
    stride_offset: int | None,
    direct: bool,
) -> tuple[Callable[[Array, Array], Array], tuple[int, ...], InitDistribution, InitDistribution]:
    """The product of x and a kernel, the kernel's shape, and the distributions at the start."""
    fan_in = size * size * channels
    fan_out = size * size * features
    kernel_init, bias_init = init_distributions(init, fan_in, fan_out, zero)
    convolve = direct3x3 if direct and size == 3 else CONVOLUTIONS.get(size, _convolve)
    if stride_offset is not None:
        convolve = partial(convolve, stride_offset=stride_offset)
    return convolve, (size, size, channels, features), kernel_init, bias_init


def conv1x1(x: Float[Array, "b h w i"], kernel: Float[Array, "1 1 i o"]) -> Float[Array, "b h w o"]:
    """Multiply each pixel by the kernel.

    On a CPU the gradient of XLA's own 1x1 convolution is several times slower.
    """
    pixels = x.reshape(-1, x.shape[-1])  # (b * h * w, i)
    return matmul(pixels, kernel[0, 0]).reshape(*x.shape[:-1], -1)


def _convolve(
    x: Float[Array, "b h w i"], kernel: Float[Array, "size size i o"]
) -> Float[Array, "b h w o"]:
    """The convolution of any size as XLA computes it."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)


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
    kernel_init, bias_init = init_distributions(init, x.shape[-1], features, zero)
    shape = (x.shape[-1], features)
    layer = _Affine(matmul, shape, kernel_init, bias_init if use_bias else None, name=name)
    return layer(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], features)


class _Affine(nn.Module):
    """product(x, kernel) + bias in the dtype of x, for x (n, c) or (b, h, w, c).

    The kernel has the given shape. Without a `bias_init` there is no bias.
    """

    product: Callable[[Array, Array], Array]
    shape: tuple[int, ...]
    kernel_init: InitDistribution
    bias_init: InitDistribution | None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = parameter(self, "kernel", self.kernel_init, self.shape)
        y = self.product(x, kernel.astype(x.dtype))
        if self.bias_init is None:
            return y
        bias = parameter(self, "bias", self.bias_init, self.shape[-1:])
        return y + jnp.expand_dims(bias.astype(x.dtype), range(y.ndim - 1))


class _ProductAndBias(nn.Module):
    """product(x, kernel) in the dtype of x, and the bias in float32, which is not added."""

    product: Callable[[Array, Array], Array]
    shape: tuple[int, ...]
    kernel_init: InitDistribution
    bias_init: InitDistribution

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Float[Array, " c"]]:
        kernel = parameter(self, "kernel", self.kernel_init, self.shape)
        bias = parameter(self, "bias", self.bias_init, self.shape[-1:])
        return self.product(x, kernel.astype(x.dtype)), bias


def embedding(
    labels: Array, num_embeddings: int, features: int, name: str, std: float = 1.0
) -> Array:
    """Look up a learned vector (features,) per label, initialised from N(0, std^2).

    A label out of range gives NaN. Raise ValueError for labels that are not integers.
    """
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"The labels of a table must be integers, not {labels.dtype}: cast them. A learned "
            "time embedding needs whole timesteps: choose another spacing or sampler."
        )
    distribution = InitDistribution("normal", std)
    table = _Table((num_embeddings, features), distribution, name=name)()
    sharding = jax.typeof(labels).sharding
    return table.at[labels].get(mode="fill", wrap_negative_indices=False, out_sharding=sharding)


class _Table(nn.Module):
    """A learned vector for each label."""

    shape: tuple[int, int]
    distribution: InitDistribution

    @nn.compact
    def __call__(self) -> Float[Array, "labels features"]:
        return parameter(self, "embedding", self.distribution, self.shape)


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
    2017, section 3.5, with freq_shift 0). Raise ValueError if dim is odd, or too small
    for freq_shift.
    """
    if dim % 2:
        raise ValueError(f"A sinusoidal embedding needs an even dim, not {dim}.")
    half = dim // 2
    if half <= freq_shift:
        raise ValueError(
            f"A sinusoidal embedding of dim {dim} needs a freq_shift below {half}, not "
            f"{freq_shift}: lower it, or raise dim."
        )
    exponents = -np.log(max_period) * np.arange(half) / (half - freq_shift)
    frequencies = np.exp(exponents).astype(np.float32)  # (dim / 2,)
    angles = t.astype(jnp.float32)[:, None] * frequencies[None]  # (b, dim / 2)
    waves = [jnp.sin(angles), jnp.cos(angles)]
    if flip_sin_to_cos:
        waves = waves[::-1]
    if layout == "concatenated":
        return jnp.concatenate(waves, -1)
    return jnp.stack(waves, -1).reshape(-1, dim)  # (b, dim / 2, 2) -> (b, dim)


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


def check_unconditional(name: str, **settings: object) -> None:
    """Raise ValueError if a setting of a condition is set, for a network that takes none."""
    for setting, value in settings.items():
        if value:
            raise ValueError(f"{name} takes no condition: leave {setting} out, or use the UNet.")
