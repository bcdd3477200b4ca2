"""Matrix products whose gradients are fast matrix products on a CPU, too."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.models.kernels.bilinear import Bilinear


def matmul(a: Float[Array, "*b n k"], b: Float[Array, "*b k m"]) -> Float[Array, "*b n m"]:
    """a @ b, for two matrices or two equally long stacks of matrices, of one dtype."""
    return _matmul(a, b)


def matmul_by_rows(a: Float[Array, "*b n k"], b: Float[Array, "*b m k"]) -> Float[Array, "*b n m"]:
    """a @ b.T, for two matrices or two equally long stacks of matrices, of one dtype."""
    return _matmul_by_rows(a, b)


def matmul_by_rows_to_float32(
    a: Float[Array, "*b n k"], b: Float[Array, "*b m k"]
) -> Float[Array, "*b n m"]:
    """a @ b.T of matrices of a narrow dtype, summed and returned in float32.

    The gradients have the dtypes of a and b.
    """
    return _matmul_by_rows_to_float32(a, b)


def _rows_to_float32(a, b):
    return jnp.matmul(a, b.swapaxes(-1, -2), preferred_element_type=jnp.float32)


def _rows(a, b):
    return jnp.matmul(a, b.swapaxes(-1, -2))  # (*b, n, k), (*b, m, k) -> (*b, n, m)


def _columns(a, b):
    return jnp.matmul(a.swapaxes(-1, -2), b)  # (*b, n, k), (*b, n, m) -> (*b, k, m)


def _columns_on_cpu(a, b):
    """`_columns`, arranged so that XLA transposes no single matrix, and in a stack only b.

    XLA's library for CPUs does not sum over the rows of stacked left matrices; a slower product
    would run instead. In attention b is the smaller array. The barriers keep XLA from undoing this.
    """
    if a.ndim == 2:
        return _columns(*jax.lax.optimization_barrier((a, b)))
    b_transposed = jax.lax.optimization_barrier(b.swapaxes(-1, -2))  # (*b, m, n)
    product = jnp.matmul(b_transposed, a)  # (*b, m, k)
    return jax.lax.optimization_barrier(product).swapaxes(-1, -2)  # (*b, k, m)


_matmul = Bilinear("matmul", jnp.matmul, jnp.matmul)
_matmul_by_rows = Bilinear("matmul_by_rows", _rows, _rows)
_matmul_by_rows_to_float32 = Bilinear("matmul_by_rows_to_float32", *[_rows_to_float32] * 2)
_matmul_by_columns = Bilinear("matmul_by_columns", _columns, _columns_on_cpu)
_matmul.set_gradients(
    lambda g, a, b: _matmul_by_rows(g, b),
    lambda g, a, b: _matmul_by_columns(a, g),
)
_matmul_by_rows.set_gradients(
    lambda g, a, b: _matmul(g, b),
    lambda g, a, b: _matmul_by_columns(g, a),
)
_matmul_by_columns.set_gradients(
    lambda g, a, b: _matmul_by_rows(b, g),
    lambda g, a, b: _matmul(a, g),
)
# Products of a float32 cotangent with a narrower array would be in float32, and slow on a GPU.
_matmul_by_rows_to_float32.set_gradients(
    lambda g, a, b: _matmul(g.astype(b.dtype), b),
    lambda g, a, b: _matmul_by_columns(g.astype(a.dtype), a),
)
