"""Bilinear JAX primitives with a separate implementation for CPUs.

A bilinear f(a, b) comes with two more primitives, because sum(f(a, b) * g) is linear in each of a,
b and g: every gradient of one of the three primitives is another of the three. So gradients of any
order, in both modes, use the CPU implementations. `jax.custom_vjp` has no forward mode and
`jax.custom_jvp` loses the rule for the reverse mode, so these are primitives.
"""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir, xla
from jaxtyping import Array

from ddpm_jax.models.kernels.switch import kernels_are_on


class Bilinear:
    """A bilinear function that runs `on_cpu` on a CPU and `plain` on every other device.

    Both are called as (a, b, **options) and must compute the same function, whose output has as
    many axes as a. `set_gradients` sets the gradients.
    """

    def __init__(self, name: str, plain: Callable, on_cpu: Callable):
        self.plain = plain
        self.primitive = Primitive(name)
        plain = _at_precision(plain)

        def abstract_eval(a, b, **options):
            out = jax.eval_shape(partial(plain, **options), a, b)
            return a.update(shape=out.shape, dtype=out.dtype, weak_type=False)

        def batch(args, axes, **options):
            return jax.vmap(partial(plain, **options), axes)(*args), 0

        self.primitive.def_impl(partial(xla.apply_primitive, self.primitive))
        self.primitive.def_abstract_eval(abstract_eval)
        batching.primitive_batchers[self.primitive] = batch
        mlir.register_lowering(self.primitive, _lowering(plain))
        mlir.register_lowering(self.primitive, _lowering(_at_precision(on_cpu)), platform="cpu")

    def __call__(self, a: Array, b: Array, **options: Any) -> Array:
        """Apply the function, at the `jax.default_matmul_precision` of the caller.

        The result has the sharding and the varying axes of the plain form.
        """
        plain = partial(self.plain, **options)
        if not kernels_are_on():
            return plain(a, b)
        precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
        apply = partial(self.primitive.bind, precision=precision, **options)
        explicit = _explicit_axes(a) or _explicit_axes(b)
        if explicit:
            # The CPU implementation reshapes sharded axes, which only Auto axes allow.
            sharding = jax.eval_shape(plain, a, b).sharding
            apply = jax.sharding.auto_axes(apply, axes=explicit, out_sharding=sharding)
        return apply(*_varying_alike(a, b))

    def set_gradients(self, grad_a: Callable, grad_b: Callable) -> None:
        """Set the gradients for a and b, functions (g, a, b, **options) of the cotangent g.

        In `grad_a`, a is a placeholder of which only the `aval` may be read; in `grad_b`, b is.
        """
        ad.defbilinear(self.primitive, _at_precision(grad_a), _at_precision(grad_b))


def _lowering(function):
    # The cache makes JAX trace the function once per shape, not once per call.
    jitted = functools.cache(lambda **options: jax.jit(partial(function, **options)))

    def lower(*args, **options):
        return jitted(**options)(*args)

    return mlir.lower_fun(lower, multiple_results=False)


def _at_precision(function):
    """Wrap `function` to take the matmul precision as an option.

    JAX traces the implementation of a primitive outside of the caller's precision context.
    """

    def run(*args, precision, **options):
        with jax.default_matmul_precision(precision):
            return function(*args, **options)

    return run


def _explicit_axes(x: Array) -> tuple[str, ...]:
    """The axes with explicit sharding of the mesh of x."""
    return jax.typeof(x).sharding.mesh.explicit_axes


def _varying_alike(*arrays: Array) -> list[Array]:
    """Make the arrays vary over the same axes of a `shard_map`, as plain operations do."""
    varying = [jax.typeof(x).manual_axis_type.varying for x in arrays]
    union = frozenset().union(*varying)
    return [
        jax.lax.pcast(x, tuple(union - axes), to="varying")
        for x, axes in zip(arrays, varying, strict=True)
    ]
