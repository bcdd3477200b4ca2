"""Fresh parameters: described by shape and distribution, then drawn, each with its own key."""

import math
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from flax.errors import ScopeParamShapeError
from jaxtyping import Array, Key

from ddpm_jax import draws

Init = Literal["ddpm", "torch"]
"""The initialisation scheme of a network.

ddpm: Glorot-uniform kernels and zero biases; the last layer of each residual branch starts at zero.
torch: PyTorch's defaults.
"""


class InitDistribution(NamedTuple):
    """The distribution of a fresh parameter.

    uniform: U(-scale, scale). normal: N(0, scale^2). constant: `scale` itself.
    """

    kind: Literal["uniform", "normal", "constant"]
    scale: float


ZEROS = InitDistribution("constant", 0.0)
ONES = InitDistribution("constant", 1.0)


def torch_uniform(fan_in: int) -> InitDistribution:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)).

    PyTorch's default for the kernel and the bias of Linear and Conv2d.
    """
    return InitDistribution("uniform", fan_in**-0.5)


def fan_avg_uniform(fan_in: int, fan_out: int) -> InitDistribution:
    """Glorot's uniform distribution, of variance 2 / (fan_in + fan_out), as in the DDPM code."""
    return InitDistribution("uniform", (6 / (fan_in + fan_out)) ** 0.5)


@struct.dataclass
class ParamSpec(nn.meta.AxisMetadata):
    """A parameter that is not drawn yet: its shape and dtype in `value`, and its distribution."""

    value: Any
    distribution: InitDistribution = struct.field(pytree_node=False)

    def unbox(self) -> Any:
        return self.value

    def replace_boxed(self, value: Any) -> "ParamSpec":
        return ParamSpec(value, self.distribution)

    def add_axis(self, index: int, params: dict) -> "ParamSpec":
        return self

    def remove_axis(self, index: int, params: dict) -> "ParamSpec":
        return self


def parameter(
    module: nn.Module, name: str, distribution: InitDistribution, shape: tuple[int, ...]
) -> Array:
    """Declare a float32 parameter of a module, and return its value.

    Initialisation draws nothing: it records a `ParamSpec`, and the value is zeros. Linen's own
    `param` is slow: in every application it traces an initializer for each parameter, to compare
    shapes (docs/speed.md). Raise ScopeParamShapeError if the value has another shape.
    """
    if not module.has_variable("params", name):
        spec = ParamSpec(jax.lax.full(shape, np.float32(0)), distribution)
        module.variable("params", name, lambda: spec)
    value = nn.meta.unbox(module.get_variable("params", name))
    if value.shape != shape:
        raise ScopeParamShapeError(name, "/".join(module.path), value.shape, shape)
    return value


def draw_parameters(key: Key[Array, ""], specs: Any) -> Any:
    """Draw each parameter of a tree of `ParamSpec`s, with a key folded from its path.

    One jit of the whole network takes many seconds to compile, and one program per shape is hardly
    better. So random numbers are drawn in blocks of a few sizes (powers of 2), which compile once
    per size, and one small program cuts the blocks to shape.
    """

    def random_block(path, spec):
        if spec.distribution.kind == "constant":
            return None
        block_size = 1 << max(12, (spec.value.size - 1).bit_length())
        return _draw_block(_key_at(path, key), spec.distribution.kind, (block_size,))

    leaves, structure = jax.tree.flatten(specs, is_leaf=is_spec)
    block_tree = jax.tree.map_with_path(random_block, specs, is_leaf=is_spec)
    blocks = jax.tree.leaves(block_tree, is_leaf=lambda leaf: leaf is None)
    targets = tuple((spec.value.shape, spec.distribution) for spec in leaves)
    return jax.tree.unflatten(structure, _cut_blocks(blocks, targets))


def draw_split_parameters(key: Key[Array, ""], specs: Any, shardings: Any) -> Any:
    """Draw the numbers of `draw_parameters`, each part of an array on the devices that keep it.

    No array is whole on any device. One program is compiled per shape and sharding.
    """

    def draw(path, spec, sharding):
        return _draw_split(_key_at(path, key), spec.value.shape, spec.distribution, sharding)

    return jax.tree.map_with_path(draw, specs, shardings, is_leaf=is_spec)


def is_spec(leaf: Any) -> bool:
    """Whether a leaf of a tree is a parameter that is not drawn yet."""
    return isinstance(leaf, ParamSpec)


def check_specs(specs: Any) -> Any:
    """Return a tree of `ParamSpec`s. Raise ValueError if Flax's own layers declared some leaf."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(specs, is_leaf=is_spec):
        if not is_spec(leaf):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(
                f"The parameter {name} was declared by Flax's own `param`, which draws it itself: "
                "use ddpm_jax.models.layers, or declare it by initializers.parameter."
            )
    return specs


def _key_at(path, key):
    """The key of the parameter at a path."""
    return draws.fold_in_name(key, jax.tree_util.keystr(path, simple=True, separator="/"))


@partial(jax.jit, static_argnums=(1, 2))
def _draw_block(key, kind: str, shape: tuple[int, ...]):
    if kind == "normal":
        return draws.normal(key, shape)
    return 2 * draws.uniform(key, shape) - 1


@partial(jax.jit, static_argnums=(1, 2, 3))
def _draw_split(key, shape, distribution, sharding):
    if distribution.kind == "constant":
        values = jnp.full(shape, distribution.scale, jnp.float32)
    else:
        # The i-th number depends on the key and on i alone, so a prefix of a block is the same.
        # Without the barrier XLA merges the factors of a normal distribution, which rounds once.
        drawn = jax.lax.optimization_barrier(_draw_block(key, distribution.kind, shape))
        values = drawn * distribution.scale
    return jax.lax.with_sharding_constraint(values, sharding)


@partial(jax.jit, static_argnums=1)
def _cut_blocks(blocks, targets):
    """Cut and scale each block to its (shape, distribution). The block of a constant is None."""
    parameters = []
    for block, (shape, distribution) in zip(blocks, targets, strict=True):
        if block is None:
            parameters.append(jnp.full(shape, distribution.scale, jnp.float32))
        else:
            parameters.append(block[: math.prod(shape)].reshape(shape) * distribution.scale)
    return parameters


def init_distributions(
    init: Init, fan_in: int, fan_out: int, zero: bool
) -> tuple[InitDistribution, InitDistribution]:
    """The distributions of the kernel and the bias of a layer.

    `zero` makes the kernel start at 0 under the ddpm scheme; the torch scheme ignores it.
    """
    if init == "torch":
        return torch_uniform(fan_in), torch_uniform(fan_in)
    kernel = ZEROS if zero else fan_avg_uniform(fan_in, fan_out)
    return kernel, ZEROS
