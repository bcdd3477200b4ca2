"""The norm of a gradient, from few sums where each one is a kernel to launch."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

SMALL = 1024
"""Arrays with fewer elements than this are joined. fsdp splits none of them (a test compares this
number with that of `devices.parallel`, which a user of a training step does not import)."""


def global_norm(tree: Any) -> Float[Array, ""]:
    """The Euclidean norm of all arrays of a tree.

    A GPU launches a kernel or two per sum, and most arrays of a network are as small as a bias, so
    the small ones are joined there (benchmarks/chips.py). A CPU keeps optax's sums.
    """
    return jax.lax.platform_dependent(tree, cpu=optax.tree.norm, default=norm_of_few_sums)


def norm_of_few_sums(tree: Any) -> Float[Array, ""]:
    """`global_norm` by one sum for the small arrays and one for each of the others."""
    leaves = jax.tree.leaves(tree)
    small = [leaf.ravel() for leaf in leaves if leaf.size < SMALL]
    joined = [jnp.concatenate(small)] if small else []
    return optax.tree.norm([*joined, *(leaf for leaf in leaves if leaf.size >= SMALL)])
