"""Fresh parameters: described by shape and distribution, then drawn, each from a key of its own."""

import math
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Key

Init = Literal["ddpm", "torch"]
"""ddpm: fan_avg uniform, zero bias, zero last layer of each residual branch. torch: PyTorch's defaults."""


class InitDistribution(NamedTuple):
    """The distribution of a fresh parameter: U(-scale, scale), N(0, scale^2), or the number `scale` itself."""

    kind: Literal["uniform", "normal", "constant"]
    scale: float


ZEROS, ONES = InitDistribution("constant", 0.0), InitDistribution("constant", 1.0)


def torch_uniform(fan_in: int) -> InitDistribution:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): PyTorch's default for the kernel and the bias of Linear and Conv2d."""
    return InitDistribution("uniform", fan_in**-0.5)


def fan_avg_uniform(fan_in: int, fan_out: int) -> InitDistribution:
    """Glorot's uniform distribution, of variance 2 / (fan_in + fan_out), as the DDPM code has it."""
    return InitDistribution("uniform", (6 / (fan_in + fan_out)) ** 0.5)


@struct.dataclass
class ParamSpec(nn.meta.AxisMetadata):
    """A parameter before it is drawn: its shape, and the distribution to draw it from."""

    value: Any
    initial: InitDistribution = struct.field(pytree_node=False)

    def unbox(self) -> Any:
        return self.value

    def replace_boxed(self, value: Any) -> "ParamSpec":
        return ParamSpec(value, self.initial)

    def add_axis(self, index: int, params: dict) -> "ParamSpec":
        return self

    def remove_axis(self, index: int, params: dict) -> "ParamSpec":
        return self


def param_spec(initial: InitDistribution) -> Callable:
    """The Linen initializer that only takes note of `initial`."""
    return lambda key, shape, dtype=jnp.float32: ParamSpec(jnp.zeros(shape, dtype), initial)


def draw_parameters(key: Key[Array, ""], undrawn_parameters: Any) -> Any:
    """Draws each leaf from a key of its own, folded from its path.

    Initialising a net under one jit compiles for many seconds, a program a shape is not much better: numbers are
    drawn in blocks of a few sizes, which compile once each, and one small program cuts them to shape.
    """

    def numbers(path, leaf):
        if leaf.initial.kind == "constant":
            return None
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        leaf_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
        return _block(leaf_key, leaf.initial.kind, 1 << max(12, (leaf.value.size - 1).bit_length()))

    is_leaf = lambda leaf: isinstance(leaf, ParamSpec)  # noqa: E731
    leaves, structure = jax.tree.flatten(undrawn_parameters, is_leaf=is_leaf)
    blocks = jax.tree.leaves(
        jax.tree.map_with_path(numbers, undrawn_parameters, is_leaf=is_leaf), lambda x: x is None
    )
    specs = tuple((leaf.value.shape, leaf.initial) for leaf in leaves)
    return jax.tree.unflatten(structure, _cut(blocks, specs))


@partial(jax.jit, static_argnums=(1, 2))
def _block(key, kind: str, size: int):
    return (
        jax.random.normal(key, (size,))
        if kind == "normal"
        else jax.random.uniform(key, (size,), minval=-1.0)
    )


@partial(jax.jit, static_argnums=1)
def _cut(blocks, specs):
    return [
        jnp.full(shape, initial.scale, jnp.float32)
        if block is None
        else block[: math.prod(shape)].reshape(shape) * initial.scale
        for block, (shape, initial) in zip(blocks, specs, strict=True)
    ]


def init_distributions(
    init: Init, fan_in: int, fan_out: int, zero: bool
) -> tuple[InitDistribution, InitDistribution]:
    if init == "torch":
        return torch_uniform(fan_in), torch_uniform(fan_in)
    return ZEROS if zero else fan_avg_uniform(fan_in, fan_out), ZEROS
