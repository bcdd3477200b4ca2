"""3x3 convolutions that need fewer multiplications on a CPU (Winograd; Lavin & Gray 2016).

`conv3x3` is an ordinary convolution: differentiable in both modes, to any order, on any device.
Compiled for a CPU, it and its gradients use minimal filtering, where m x m outputs take (m + 2)^2
multiplications per pair of channels in place of 9 m^2, and matrix products do most of the work.
"""

from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddpm_jax.models.kernels.bilinear import Bilinear

# With fewer input or output channels, the convolution is direct. The number is not measured: XLA's
# library for CPUs needs more than 16.
MIN_CHANNELS = 32
# Images of at least this many pixels are convolved one by one, so that their tiles fit the cache.
LARGE_IMAGE = 28 * 28
# Transforming one weight to one point costs as much time as this many multiplications by it. The
# number is from a single timing.
KERNEL_COST = 50

_NHWC = ("NHWC", "HWIO", "NHWC")


def conv3x3(
    x: Float[Array, "b h w i"], kernel: Float[Array, "3 3 i o"], stride_offset: int | None = None
) -> Float[Array, "b h2 w2 o"]:
    """Convolve x, padded with zeros to keep its size.

    `stride_offset` None means stride 1. 0 or 1 means stride 2, and is the first row and column of
    the stride-1 result to keep: 0 equals padding by 1 on all sides, 1 equals padding at the right
    and the bottom only.
    """
    return _conv(x, kernel, stride_offset=stride_offset)


def direct(x: Array, kernel: Array, *, stride_offset: int | None = None) -> Array:
    """`conv3x3` as XLA computes it."""
    stride = 1 if stride_offset is None else 2
    before = 1 if stride_offset is None else 1 - stride_offset
    padding = ((before, 1), (before, 1))
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=_NHWC
    )


class WinogradTransform(NamedTuple):
    """F(m, 3): m outputs of a filter of 3 taps, from m + 2 inputs x (Eq. 6, Lavin & Gray 2016).

    The outputs are outputs @ ((taps @ kernel) * (inputs @ x)); the paper's names of the three
    matrices are A^T, G and B^T. The a = m + 2 entries of the product are called points.
    """

    outputs: Float[np.ndarray, "m a"]
    taps: Float[np.ndarray, "a 3"]
    inputs: Float[np.ndarray, "a a"]

    @property
    def size(self) -> int:
        """The number m of outputs of a tile in one direction."""
        return len(self.outputs)


def winograd_transform(*points: float) -> WinogradTransform:
    """F(m, 3) by the Toom-Cook algorithm, for m = len(points) - 1.

    The algorithm multiplies polynomials through their values at these points and at infinity.
    """
    num_points = len(points) + 1

    def evaluation(num_coefficients: int) -> np.ndarray:
        """The matrix from the coefficients of a polynomial to its values."""
        at_points = np.vander(points, num_coefficients, increasing=True)
        at_infinity = np.eye(1, num_coefficients, num_coefficients - 1)
        return np.vstack([at_points, at_infinity])

    taps = evaluation(3)  # (a, 3)
    inputs = np.linalg.inv(evaluation(num_points)).T  # (a, a)
    inputs[np.abs(inputs) < 1e-12] = 0
    # Balance the sizes of the two factors. A power of 2 is exact in float32.
    exponent = np.round(np.log2(np.abs(inputs).sum(1) / np.abs(taps).sum(1)) / 2)  # (a,)
    scale = 2 ** exponent[:, None]
    return WinogradTransform(evaluation(num_points - 2).T, taps * scale, inputs / scale)


# F2 rounds like the direct sum. F4 has 3 times its rounding error; with the usual points
# 0, 1, -1, 2, -2 it would be 6 times.
F2 = winograd_transform(0.0, 1.0, -1.0)
F4 = winograd_transform(0.0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5))


def winograd_conv(x: Array, kernel: Array, f: WinogradTransform = F2) -> Array:
    """`direct` with stride 1, in tiles of f."""
    return _convolve(x, _transform_kernel(kernel, f.taps), f, "uti,uio->uto")


def winograd_input_grad(g: Array, kernel: Array, f: WinogradTransform = F4) -> Array:
    """The gradient of sum(g * direct(x, kernel)) for x: g convolved with the rotated kernel."""
    return _convolve(g, _transform_kernel(kernel, f.taps[:, ::-1]), f, "uto,uio->uti")


def winograd_kernel_grad(x: Array, g: Array, f: WinogradTransform = F4) -> Array:
    """The gradient of sum(g * direct(x, kernel)) for the kernel.

    This is the transpose of `winograd_conv`, with a sum over all tiles.
    """

    def correlate(x, g):
        return jnp.einsum("uti,uto->uio", _transform_inputs(x, f), _untransform_outputs(g, f))

    if _convolves_one_by_one(x):
        start = jnp.zeros_like(x, shape=(f.inputs.size, x.shape[-1], g.shape[-1]))
        at_points, _ = jax.lax.scan(
            lambda total, xg: (total + correlate(*xg), None), start, (x[:, None], g[:, None])
        )
    else:
        at_points = correlate(x, g)  # (a * a, i, o)
    at_points = at_points.reshape(*f.inputs.shape, *at_points.shape[1:])  # (a, a, i, o)
    columns = _combine(f.taps.T, list(at_points))  # (3, a, i, o)
    return _combine(f.taps.T, list(columns.swapaxes(0, 1)))  # (3, 3, i, o)


def _convolve(x, kernel_at_points, f, products):
    """Convolve x with a transformed kernel; `products` is the einsum over the channels."""

    def convolve(x):
        b, h, w = x.shape[:3]
        m = f.size
        tiles_down = -(-h // m)
        tiles_across = -(-w // m)
        at_points = jnp.einsum(products, _transform_inputs(x, f), kernel_at_points)
        # (a * a, tiles, o) -> (a, a, b, h / m, w / m, o), the columns of the points first
        at_points = at_points.reshape(*f.inputs.shape, b, tiles_down, tiles_across, -1)
        columns = _combine(f.outputs, list(at_points), -2)  # (a, b, h / m, w / m, m, o)
        rows = _combine(f.outputs, list(columns), 2)  # (b, h / m, m, w / m, m, o)
        return rows.reshape(b, tiles_down * m, tiles_across * m, -1)[:, :h, :w]

    if _convolves_one_by_one(x):
        return jax.lax.map(lambda image: convolve(image[None])[0], x)
    return convolve(x)


def _convolves_one_by_one(x):
    return x.shape[0] != 1 and x.shape[1] * x.shape[2] >= LARGE_IMAGE


def _combine(matrix, parts, axis=0):
    """Multiply a list of arrays by a small constant matrix, and stack the results.

    The product is written as sums, because a matrix product with so few rows is slow.
    """

    def scaled(part, c):
        return part if c == 1 else jax.lax.mul(part, jax.lax.full_like(part, c))

    # jnp.add and jnp.multiply would take longer to trace (docs/speed.md).
    sums = [
        reduce(jax.lax.add, [scaled(part, c) for c, part in zip(row, parts, strict=True) if c])
        for row in matrix
    ]
    return jnp.stack(sums, axis)


def _transform_inputs(x, f):
    """(b, h, w, i) -> (a * a, tiles, i): the tiles of x, transformed to the points.

    Tiles overlap by 2 pixels. The columns of the points come first.
    """
    h, w = x.shape[1:3]
    m = f.size
    a = len(f.inputs)
    height = -(-h // m) * m
    width = -(-w // m) * m
    # (b, height + 2, width + 2, i)
    x = jnp.pad(x, ((0, 0), (1, height - h + 1), (1, width - w + 1), (0, 0)))
    # (a, b, height / m, width + 2, i)
    rows = _combine(f.inputs, [x[:, k : k + height - m + 1 : m] for k in range(a)])
    # (a, a, b, height / m, width / m, i)
    columns = _combine(f.inputs, [rows[:, :, :, k : k + width - m + 1 : m] for k in range(a)])
    return columns.reshape(a * a, -1, x.shape[-1])


def _untransform_outputs(g, f):
    """(b, h, w, o) -> (a * a, tiles, o): the transpose of the map from points to outputs."""
    b, h, w, o = g.shape
    m = f.size
    g = jnp.pad(g, ((0, 0), (0, -h % m), (0, -w % m), (0, 0)))
    g = g.reshape(b, g.shape[1] // m, m, g.shape[2] // m, m, o)  # (b, h / m, m, w / m, m, o)
    rows = _combine(f.outputs.T, [g[:, :, k] for k in range(m)])  # (a, b, h / m, w / m, m, o)
    # (a, a, b, h / m, w / m, o)
    columns = _combine(f.outputs.T, [rows[:, :, :, :, k] for k in range(m)])
    return columns.reshape(f.inputs.size, -1, o)


def _transform_kernel(kernel, taps):
    """(3, 3, i, o) -> (a * a, i, o): the kernel at the points, the columns of the points first."""
    rows = _combine(taps, list(kernel))  # (a, 3, i, o)
    columns = _combine(taps, [rows[:, k] for k in range(3)])  # (a, a, i, o)
    return columns.reshape(-1, *kernel.shape[2:])


def _faster_transform(x):
    """F4 or F2, whichever is estimated to be faster for images of this shape.

    In a program that `jax.export` makes for a batch of any size, it is chosen for one image.
    """
    b, h, w, _ = x.shape
    b = b if isinstance(b, int) else 1

    def cost(f):
        num_tiles = b * -(-h // f.size) * -(-w // f.size)
        return f.inputs.size * (num_tiles + KERNEL_COST)

    return min(F4, F2, key=cost)


def _undo_stride(g, stride_offset, size):
    """Spread g over an image of this size: its pixels where the stride kept them, 0 elsewhere."""
    if stride_offset is None:
        return g
    ends = [
        (stride_offset, full - stride_offset - 2 * half + 1, 1)
        for full, half in zip(size, g.shape[1:3], strict=True)
    ]
    return jax.lax.pad(g, jnp.zeros((), g.dtype), [(0, 0, 0), *ends, (0, 0, 0)])


def _direct_input_grad(g, kernel, *, stride_offset, size):
    x = jnp.zeros_like(g, shape=(g.shape[0], *size, kernel.shape[2]))
    transpose = jax.linear_transpose(lambda x: direct(x, kernel, stride_offset=stride_offset), x)
    return transpose(g)[0]


def _direct_kernel_grad(x, g, *, stride_offset):
    kernel = jnp.zeros_like(x, shape=(3, 3, x.shape[3], g.shape[3]))
    transpose = jax.linear_transpose(
        lambda kernel: direct(x, kernel, stride_offset=stride_offset), kernel
    )
    return transpose(g)[0]


def _winograd_pays(x, channels_out):
    channels_suffice = min(x.shape[-1], channels_out) >= MIN_CHANNELS
    # `jax.export` allows images of unknown size, whose tiles cannot be counted.
    size_is_known = all(isinstance(length, int) for length in x.shape[1:3])
    return x.dtype == jnp.float32 and channels_suffice and size_is_known


def _conv_on_cpu(x, kernel, *, stride_offset):
    if stride_offset is None and _winograd_pays(x, kernel.shape[3]):
        return winograd_conv(x, kernel)
    return direct(x, kernel, stride_offset=stride_offset)


def _input_grad_on_cpu(g, kernel, *, stride_offset, size):
    g = _undo_stride(g, stride_offset, size)
    if _winograd_pays(g, kernel.shape[2]):
        return winograd_input_grad(g, kernel, _faster_transform(g))
    return direct(g, jnp.flip(kernel, (0, 1)).swapaxes(2, 3))


def _kernel_grad_on_cpu(x, g, *, stride_offset):
    if _winograd_pays(x, g.shape[3]):
        g = _undo_stride(g, stride_offset, x.shape[1:3])
        return winograd_kernel_grad(x, g, _faster_transform(x))
    return _direct_kernel_grad(x, g, stride_offset=stride_offset)


_conv = Bilinear("conv3x3", direct, _conv_on_cpu)
_input_grad = Bilinear("conv3x3_input_grad", _direct_input_grad, _input_grad_on_cpu)
_kernel_grad = Bilinear("conv3x3_kernel_grad", _direct_kernel_grad, _kernel_grad_on_cpu)


# The cotangent comes first. It has the shape of the primitive's output, so it is named after it:
# g, x and kernel.
_conv.set_gradients(
    lambda g, x, kernel, *, stride_offset: _input_grad(
        g, kernel, stride_offset=stride_offset, size=x.aval.shape[1:3]
    ),
    lambda g, x, kernel, *, stride_offset: _kernel_grad(x, g, stride_offset=stride_offset),
)
_input_grad.set_gradients(
    lambda x, g, kernel, *, stride_offset, size: _conv(x, kernel, stride_offset=stride_offset),
    lambda x, g, kernel, *, stride_offset, size: _kernel_grad(x, g, stride_offset=stride_offset),
)
_kernel_grad.set_gradients(
    lambda kernel, x, g, *, stride_offset: _input_grad(
        g, kernel, stride_offset=stride_offset, size=x.aval.shape[1:3]
    ),
    lambda kernel, x, g, *, stride_offset: _conv(x, kernel, stride_offset=stride_offset),
)
