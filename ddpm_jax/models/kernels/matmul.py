"""Bilinear JAX primitives with a separate implementation for CPUs, and matrix products made so.

A bilinear f(a, b) comes with two more primitives, because sum(f(a, b) * g) is linear in each of a,
b and g: every gradient of one of the three primitives is another of the three. So gradients of any
order, in both modes, use the CPU implementations.
"""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float


def bilinear(name: str, function: Callable, on_cpu: Callable) -> Primitive:
    """Make a primitive that computes `on_cpu` on a CPU and `function` on every other device.

    Both are called as (a, b, **options) and must compute the same function. `define_gradients` sets
    the gradients.
    """
    primitive = Primitive(name)
    function = _at_precision(function)
    on_cpu = _at_precision(on_cpu)

    def abstract_eval(*args, **options):
        out = jax.eval_shape(partial(function, **options), *args)
        return jax.core.ShapedArray(out.shape, out.dtype)

    def batch(args, axes, **options):
        return jax.vmap(partial(function, **options), axes)(*args), 0

    @functools.cache
    def compiled(**options):
        return jax.jit(partial(primitive.bind, **options))

    def lowering(function):
        # The cache makes JAX trace the function once per shape, not once per call.
        jitted = functools.cache(lambda **options: jax.jit(partial(function, **options)))

        def lower(*args, **options):
            return jitted(**options)(*args)

        return mlir.lower_fun(lower, multiple_results=False)

    primitive.def_impl(lambda *args, **options: compiled(**options)(*args))
    primitive.def_abstract_eval(abstract_eval)
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, lowering(function))
    mlir.register_lowering(primitive, lowering(on_cpu), platform="cpu")
    return primitive


def bind(primitive: Primitive, a: Array, b: Array, **options: Any) -> Array:
    """Apply the primitive to a and b, at the `jax.default_matmul_precision` of the caller."""
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return primitive.bind(a, b, precision=precision, **options)


def define_gradients(primitive: Primitive, grad_a: Callable, grad_b: Callable) -> None:
    """Set the gradients for a and b, functions (g, a, b, **options) of the cotangent g.

    In `grad_a`, a is a placeholder of which only the `aval` may be read; in `grad_b`, b is.
    """
    ad.defbilinear(primitive, _at_precision(grad_a), _at_precision(grad_b))


def _at_precision(function):
    """Wrap `function` to take the matmul precision as an option.

    JAX traces the implementation of a primitive outside of the caller's precision context.
    """

    def run(*args, precision, **options):
        with jax.default_matmul_precision(precision):
            return function(*args, **options)

    return run


def matmul(a: Float[Array, "*b n k"], b: Float[Array, "*b k m"]) -> Float[Array, "*b n m"]:
    """a @ b, for two matrices or two equally long stacks of matrices, of one dtype."""
    return bind(_matmul, a, b)


def matmul_by_rows(a: Float[Array, "*b n k"], b: Float[Array, "*b m k"]) -> Float[Array, "*b n m"]:
    """a @ b.T, for two matrices or two equally long stacks of matrices, of one dtype."""
    return bind(_matmul_by_rows, a, b)


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


_matmul = bilinear("matmul", jnp.matmul, jnp.matmul)
_matmul_by_rows = bilinear("matmul_by_rows", _rows, _rows)
_matmul_by_columns = bilinear("matmul_by_columns", _columns, _columns_on_cpu)
define_gradients(
    _matmul,
    lambda g, a, b: bind(_matmul_by_rows, g, b),
    lambda g, a, b: bind(_matmul_by_columns, a, g),
)
define_gradients(
    _matmul_by_rows,
    lambda g, a, b: bind(_matmul, g, b),
    lambda g, a, b: bind(_matmul_by_columns, g, a),
)
define_gradients(
    _matmul_by_columns,
    lambda g, a, b: bind(_matmul_by_rows, b, g),
    lambda g, a, b: bind(_matmul, a, g),
)
