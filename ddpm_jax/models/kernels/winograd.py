"""3x3 convolutions, with fewer multiplications where they are compiled for a CPU.

`conv3x3` is a convolution like any other: differentiable in both modes and to any order, on any device. What it adds
is how it and its gradients are computed on a CPU: by the minimal filtering of Winograd (Lavin & Gray 2016), in which
m x m outputs take (m + 2)^2 products where the sum itself takes 9 m^2, and a product of matrices does them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddpm_jax.models.kernels.matmul import bilinear, bind, gradients

MIN_CHANNELS = 32  # not measured: XLA's library wants more than 16
LARGE_IMAGE = (
    28 * 28
)  # pixels from which on images are taken one by one, so that their tiles stay in the cache
KERNEL_COST = 50  # products that take, by one timing, as long as bringing one weight to one point


def conv3x3(
    x: Float[Array, "b h w i"], kernel: Float[Array, "3 3 i o"], halve: int | None = None
) -> Float[Array, "b h2 w2 o"]:
    """The convolution of x, padded by zeros to keep its size.

    `halve` leaves every other pixel of it, from that one on: 0 is a stride of 2 with a padding of 1 all around, 1 one
    with a padding at the right and the bottom alone.
    """
    return bind(_conv, x, kernel, halve=halve)


def direct(x: Array, kernel: Array, *, halve: int | None = None) -> Array:
    """`conv3x3` as XLA computes it."""
    stride, before = (1, 1) if halve is None else (2, 1 - halve)
    padding = ((before, 1), (before, 1))
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=_NHWC
    )


_NHWC = ("NHWC", "HWIO", "NHWC")


class WinogradTransform(NamedTuple):
    """F(m, 3): m outputs of 3 taps from m + 2 inputs, as outputs @ ((taps @ kernel) * (inputs @ x)), Eq. 6."""

    outputs: Float[np.ndarray, "m a"]
    taps: Float[np.ndarray, "a 3"]
    inputs: Float[np.ndarray, "a a"]

    @property
    def size(self) -> int:
        """The outputs of a tile in one direction."""
        return len(self.outputs)


def winograd_transform(*points: float) -> WinogradTransform:
    """The filtering that evaluates polynomials at these points and at infinity (Toom & Cook)."""
    count = len(points) + 1

    def values(terms: int) -> np.ndarray:
        return np.vstack([np.vander(points, terms, increasing=True), np.eye(1, terms, terms - 1)])

    taps, inputs = values(3), np.linalg.inv(values(count)).T
    inputs[np.abs(inputs) < 1e-12] = 0
    scale = (
        2 ** np.round(np.log2(np.abs(inputs).sum(1) / np.abs(taps).sum(1)) / 2)[:, None]
    )  # exact in float32
    return WinogradTransform(values(count - 2).T, taps * scale, inputs / scale)


F2 = winograd_transform(0.0, 1.0, -1.0)  # rounds as the direct sum does
F4 = winograd_transform(
    0.0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5)
)  # 3 times as much; with 0, 1, -1, 2, -2 it is 6 times


def minimal(x: Array, kernel: Array, f: WinogradTransform = F2) -> Array:
    """`direct` by tiles of f."""
    return _convolve(x, _of_kernel(kernel, f.taps), f, "uti,uio->uto")


def minimal_input_grad(g: Array, kernel: Array, f: WinogradTransform = F4) -> Array:
    """The gradient of sum(g * direct(x, kernel)) by x: the convolution of g with the kernel turned around."""
    return _convolve(g, _of_kernel(kernel, f.taps[:, ::-1]), f, "uto,uio->uti")


def minimal_kernel_grad(x: Array, g: Array, f: WinogradTransform = F4) -> Array:
    """The gradient of the same by the kernel: the transpose of `minimal`, with a sum over all tiles."""

    def correlate(x, g):
        return jnp.einsum("uti,uto->uio", _of_tiles(x, f), _of_outputs(g, f))

    if _one_by_one(x):
        start = jnp.zeros((f.inputs.size, x.shape[-1], g.shape[-1]))
        at_points, _ = jax.lax.scan(
            lambda sum, xg: (sum + correlate(*xg), None), start, (x[:, None], g[:, None])
        )
    else:
        at_points = correlate(x, g)
    columns = _combine(f.taps.T, list(at_points.reshape(*f.inputs.shape, *at_points.shape[1:])))
    return _combine(f.taps.T, list(columns.swapaxes(0, 1)))


def _convolve(x, kernel_at_points, f, products):
    def convolve(x):
        b, h, w, m = *x.shape[:3], f.size
        at_points = jnp.einsum(products, _of_tiles(x, f), kernel_at_points)
        at_points = at_points.reshape(*f.inputs.shape, b, -(-h // m), -(-w // m), -1)
        columns = _combine(f.outputs, list(at_points), -2)
        rows = _combine(f.outputs, list(columns), 2)
        return rows.reshape(b, -(-h // m) * m, -(-w // m) * m, -1)[:, :h, :w]

    return jax.lax.map(lambda x: convolve(x[None])[0], x) if _one_by_one(x) else convolve(x)


def _one_by_one(x):
    return len(x) > 1 and x.shape[1] * x.shape[2] >= LARGE_IMAGE


def _combine(matrix, parts, axis=0):
    """The rows of the matrix times the parts, stacked; by sums, as a product with so few rows is slow."""
    sums = [sum(float(c) * part for c, part in zip(row, parts, strict=True) if c) for row in matrix]
    return jnp.stack(sums, axis)


def _of_tiles(x, f):
    """(points, tiles, i): the tiles of x, which overlap by 2, at the points; columns come first."""
    h, w, m, a = *x.shape[1:3], f.size, len(f.inputs)
    height, width = -(-h // m) * m, -(-w // m) * m
    x = jnp.pad(x, ((0, 0), (1, height - h + 1), (1, width - w + 1), (0, 0)))
    rows = _combine(f.inputs, [x[:, k : k + height - m + 1 : m] for k in range(a)])
    columns = _combine(f.inputs, [rows[:, :, :, k : k + width - m + 1 : m] for k in range(a)])
    return columns.reshape(a * a, -1, x.shape[-1])


def _of_outputs(g, f):
    """(points, tiles, o): the transpose of how outputs come from points."""
    b, h, w, o = g.shape
    m = f.size
    g = jnp.pad(g, ((0, 0), (0, -h % m), (0, -w % m), (0, 0)))
    g = g.reshape(b, g.shape[1] // m, m, g.shape[2] // m, m, o)
    rows = _combine(f.outputs.T, [g[:, :, k] for k in range(m)])
    columns = _combine(f.outputs.T, [rows[:, :, :, :, k] for k in range(m)])
    return columns.reshape(f.inputs.size, -1, o)


def _of_kernel(kernel, taps):
    """(points, i, o): the kernel at the points; columns come first."""
    rows = _combine(taps, list(kernel))
    columns = _combine(taps, [rows[:, k] for k in range(3)])
    return columns.reshape(-1, *kernel.shape[2:])


def _cheapest(x):
    """Of F2 and F4 the one that takes less time for images such as x."""
    b, h, w, _ = x.shape
    return min(
        F4, F2, key=lambda f: f.inputs.size * (b * -(-h // f.size) * -(-w // f.size) + KERNEL_COST)
    )


def _at_full_size(g, halve, size):
    """g where `halve` has left pixels of an image of that size, and 0 elsewhere."""
    if halve is None:
        return g
    ends = [
        (halve, full - halve - 2 * half + 1, 1)
        for full, half in zip(size, g.shape[1:3], strict=True)
    ]
    return jax.lax.pad(g, jnp.zeros((), g.dtype), [(0, 0, 0), *ends, (0, 0, 0)])


def _input_grad(g, kernel, *, halve, size):
    x = jax.ShapeDtypeStruct((len(g), *size, kernel.shape[2]), g.dtype)
    return jax.linear_transpose(lambda x: direct(x, kernel, halve=halve), x)(g)[0]


def _kernel_grad(x, g, *, halve):
    kernel = jax.ShapeDtypeStruct((3, 3, x.shape[3], g.shape[3]), x.dtype)
    return jax.linear_transpose(lambda kernel: direct(x, kernel, halve=halve), kernel)(g)[0]


def _pays(x, channels):
    return x.dtype == jnp.float32 and min(x.shape[-1], channels) >= MIN_CHANNELS


def _conv_on_cpu(x, kernel, *, halve):
    few = halve is not None or not _pays(x, kernel.shape[3])
    return direct(x, kernel, halve=halve) if few else minimal(x, kernel)


def _input_grad_on_cpu(g, kernel, *, halve, size):
    g = _at_full_size(g, halve, size)
    if _pays(g, kernel.shape[2]):
        return minimal_input_grad(g, kernel, _cheapest(g))
    return direct(g, jnp.flip(kernel, (0, 1)).swapaxes(2, 3))


def _kernel_grad_on_cpu(x, g, *, halve):
    if _pays(x, g.shape[3]):
        return minimal_kernel_grad(x, _at_full_size(g, halve, x.shape[1:3]), _cheapest(x))
    return _kernel_grad(x, g, halve=halve)


_conv = bilinear("conv3x3", direct, _conv_on_cpu)
_to_input = bilinear("conv3x3_input_grad", _input_grad, _input_grad_on_cpu)
_to_kernel = bilinear("conv3x3_kernel_grad", _kernel_grad, _kernel_grad_on_cpu)
gradients(
    _conv,
    lambda g, x, kernel, *, halve: bind(_to_input, g, kernel, halve=halve, size=x.aval.shape[1:3]),
    lambda g, x, kernel, *, halve: bind(_to_kernel, x, g, halve=halve),
)
gradients(
    _to_input,
    lambda x, g, kernel, *, halve, size: bind(_conv, x, kernel, halve=halve),
    lambda x, g, kernel, *, halve, size: bind(_to_kernel, x, g, halve=halve),
)
gradients(
    _to_kernel,
    lambda kernel, x, g, *, halve: bind(_to_input, g, kernel, halve=halve, size=x.aval.shape[1:3]),
    lambda kernel, x, g, *, halve: bind(_conv, x, kernel, halve=halve),
)
