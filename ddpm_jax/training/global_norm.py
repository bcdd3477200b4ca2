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

    A GPU launches two kernels to sum a large array and one for a small one. Most arrays of a
    network are as small as a bias, so all are summed to vectors there, and those joined: 126
    kernels of cifar10 instead of 228 (benchmarks/chips.py). A CPU keeps optax's sums.
    """
    return jax.lax.platform_dependent(tree, cpu=optax.tree.norm, default=norm_of_few_sums)


def norm_of_few_sums(tree: Any) -> Float[Array, ""]:
    """`global_norm` by one sum for each large array, and one over their results and the rest."""
    squares = [jnp.square(leaf) for leaf in jax.tree.leaves(tree)]
    sums = [x.ravel() if x.size < SMALL else jnp.sum(x, range(x.ndim - 1)) for x in squares]
    # Without the barrier, XLA would take a sum apart into one per array, each in two kernels.
    return jnp.sqrt(jnp.sum(jax.lax.optimization_barrier(jnp.concatenate(sums))))
