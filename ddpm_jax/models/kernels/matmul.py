"""Functions linear in each of two arrays, computed on a CPU in a way of their own; differentiable in both modes.

Three of them belong together, since sum(f(a, b) * g) is linear in all three: each gradient of one of the three is
another of them, so that gradients of any order stay as fast.
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
    """What is `function(a, b, **options)` everywhere but on a CPU; its gradients are for `gradients` to say."""
    primitive = Primitive(name)
    function, on_cpu = _at_precision(function), _at_precision(on_cpu)

    def shape(*args, **options):
        out = jax.eval_shape(partial(function, **options), *args)
        return jax.core.ShapedArray(out.shape, out.dtype)

    def batched(args, axes, **options):
        return jax.vmap(partial(function, **options), axes)(*args), 0

    @functools.cache
    def compiled(**options):
        return jax.jit(partial(primitive.bind, **options))

    def lowering(function):
        jitted = functools.cache(
            lambda **options: jax.jit(partial(function, **options))
        )  # traced once a shape
        return mlir.lower_fun(
            lambda *args, **options: jitted(**options)(*args), multiple_results=False
        )

    primitive.def_impl(lambda *args, **options: compiled(**options)(*args))
    primitive.def_abstract_eval(shape)
    batching.primitive_batchers[primitive] = batched
    mlir.register_lowering(primitive, lowering(function))
    mlir.register_lowering(primitive, lowering(on_cpu), platform="cpu")
    return primitive


def bind(primitive: Primitive, a: Array, b: Array, **options: Any) -> Array:
    """The primitive of a and b, at the precision that `jax.default_matmul_precision` says here."""
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return primitive.bind(a, b, precision=precision, **options)


def gradients(primitive: Primitive, by_a: Callable, by_b: Callable) -> None:
    """Has gradients by a and by b from `by_a(g, a, b, **options)` and `by_b(g, a, b, **options)` of the cotangent g."""
    ad.defbilinear(primitive, _at_precision(by_a), _at_precision(by_b))


def _at_precision(function):
    """`function` for a primitive, which is traced where the context of the caller is gone."""

    def run(*args, precision, **options):
        with jax.default_matmul_precision(precision):
            return function(*args, **options)

    return run


def matmul(a: Float[Array, "*b n k"], b: Float[Array, "*b k m"]) -> Float[Array, "*b n m"]:
    """a @ b of two stacks of matrices, or of two matrices, of one dtype."""
    return bind(_matmul, a, b)


def matmul_by_rows(a: Float[Array, "*b n k"], b: Float[Array, "*b m k"]) -> Float[Array, "*b n m"]:
    """a @ b.T of the same: the products of the rows."""
    return bind(_by_rows, a, b)


def _by_columns(a, b):
    return jnp.matmul(a.swapaxes(-1, -2), b)


def _by_columns_on_cpu(a, b):
    """`_by_columns` so that XLA turns around neither of two matrices, and the small one alone of a stack's."""
    if a.ndim == 2:
        return _by_columns(*jax.lax.optimization_barrier((a, b)))
    turned = jax.lax.optimization_barrier(b.swapaxes(-1, -2))
    return jax.lax.optimization_barrier(jnp.matmul(turned, a)).swapaxes(-1, -2)


_matmul = bilinear("matmul", jnp.matmul, jnp.matmul)
_by_rows = bilinear("matmul_by_rows", *2 * [lambda a, b: jnp.matmul(a, b.swapaxes(-1, -2))])
_of_columns = bilinear("matmul_by_columns", _by_columns, _by_columns_on_cpu)
gradients(_matmul, lambda g, a, b: bind(_by_rows, g, b), lambda g, a, b: bind(_of_columns, a, g))
gradients(_by_rows, lambda g, a, b: bind(_matmul, g, b), lambda g, a, b: bind(_of_columns, g, a))
gradients(_of_columns, lambda g, a, b: bind(_by_rows, b, g), lambda g, a, b: bind(_matmul, a, g))
