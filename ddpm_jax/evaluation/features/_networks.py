"""The layers of the networks of features, their weights' files, and how they get their images."""

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, UInt8

from ddpm_jax.devices import parallel
from ddpm_jax.errors import check
from ddpm_jax.pretrained.torch_pickle import read_bin

IMAGES_PER_DEVICE = 16
"""A fixed number, so that features depend neither on the batch nor on the number of devices."""


class Layer(NamedTuple):
    """A convolution, with the batch norm after it folded in."""

    kernel: Float[Array | np.ndarray, "kh kw i o"]
    bias: Float[Array | np.ndarray, "1 1 1 o"]


def fold(arrays: Mapping[str, np.ndarray], conv: str, norm: str, eps: float) -> Layer:
    """Fold a batch norm with its running statistics into the convolution before it.

    y = gamma (w x - mean) / sqrt(variance + eps) + beta    Algorithm 2, Ioffe & Szegedy 2015

    `arrays` holds PyTorch's tensors by name; `conv` and `norm` are the names of the two layers.
    """
    scale = arrays[f"{norm}.weight"] / np.sqrt(arrays[f"{norm}.running_var"].astype(float) + eps)
    bias = arrays[f"{norm}.bias"] - arrays[f"{norm}.running_mean"] * scale
    kernel = arrays[f"{conv}.weight"].transpose(2, 3, 1, 0) * scale  # (kh, kw, i, o)
    return Layer(kernel.astype(np.float32), bias.astype(np.float32).reshape(1, 1, 1, -1))


def convolve(
    x: Float[Array, "b h w i"], layer: Layer, stride: int = 1, padding: str = "SAME"
) -> Float[Array, "b h2 w2 o"]:
    """Apply a layer. SAME pads as TensorFlow does: the odd pixel goes to the bottom and right."""
    y = lax.conv_general_dilated(
        x,
        jnp.asarray(layer.kernel),
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // layer.kernel.shape[2],
        precision="highest",
    )
    return y + layer.bias


def max_pool(
    x: Float[Array, "b h w c"], stride: int = 2, padding: str = "VALID"
) -> Float[Array, "b h2 w2 c"]:
    """The maximum over 3x3 pixels. Padding never is the maximum."""
    lowest = np.array(-np.inf, x.dtype)
    return lax.reduce_window(x, lowest, lax.max, (1, 3, 3, 1), (1, stride, stride, 1), padding)


def average_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """The mean over 3x3 pixels, at the edges over those inside the image."""

    def total(x):
        zero = np.array(0, x.dtype)
        return lax.reduce_window(x, zero, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")

    return total(x) / total(jnp.ones((1, *x.shape[1:3], 1), x.dtype))


def bilinear_matrix(old: int, new: int) -> Float[np.ndarray, "{new} {old}"]:
    """The matrix that resizes a line of `old` pixels to `new` ones, without antialiasing.

    Pixel centres are at half-integers, and the first and last pixel continue beyond the edges.
    """
    position = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(old)))


def resize(
    images: UInt8[Array, "b h w c"], matrix: Callable[[int, int], np.ndarray], size: int
) -> Float[Array, "b {size} {size} c"]:
    """Resize 8-bit images to a square of `size` pixels, as floats in [0, 255].

    `matrix(old, new)` resizes a line.
    """
    rows, columns = (jnp.asarray(matrix(old, size), jnp.float32) for old in images.shape[1:3])
    pixels = images.astype(jnp.float32)
    return jnp.einsum("Hh,Ww,bhwc->bHWc", rows, columns, pixels, precision="highest")


def map_images(
    function: Callable, params: Any, images: UInt8[np.ndarray, "n h w c"]
) -> Float[np.ndarray, "n d"]:
    """Compute `function(params, images)` of colour images, a batch at a time, on all local devices.

    Raise ValueError for images of other than 1 or 3 channels.
    """
    apply = jax.jit(parallel.per_shard(function))
    params = parallel.replicate(params)
    size = IMAGES_PER_DEVICE * parallel.data_mesh().size
    features = []
    for start in range(0, len(images), size):
        # The last batch is padded with the first images.
        batch = to_colour(images[np.arange(start, start + size) % len(images)])
        features.append(apply(params, parallel.shard(batch)))
    return np.concatenate(jax.device_get(features))[: len(images)]


def on_devices(function: Callable, params: Any) -> Callable[[np.ndarray], np.ndarray]:
    """`map_images` with the parameters on the devices, where all calls find them."""
    return partial(map_images, function, parallel.replicate(params))


def to_colour(images: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n h w 3"]:
    """Repeat the one channel of grey images. Raise ValueError for other than 1 or 3 channels."""
    channels = images.shape[-1]
    check(
        channels in (1, 3),
        f"Networks of features need images of 1 or 3 channels, not {channels}: use the features "
        "pixels.",
    )
    return np.broadcast_to(images, (*images.shape[:3], 3))


def named_hash(path: Path, name: str, remedy: str) -> str:
    """The hash in the `name` of a file of weights, NAME-HASH.pth, where PyTorch's hub has it.

    Raise ValueError, with the `remedy`, unless the SHA-256 of the file at `path` begins with it.
    """
    expected = Path(name).stem.rpartition("-")[2]
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()[: len(expected)]
    check(
        found == expected,
        f"{path} is damaged or another file (its SHA-256 begins with {found}): {remedy}.",
    )
    return expected


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read all tensors of a file of torch.save, except the counters of its batch norms."""
    tensors = read_bin(path, ["num_batches_tracked"])
    return {name: tensor.read() for name, tensor in tensors.items()}
