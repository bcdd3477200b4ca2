"""Small arrays joined into one.

Most arrays of a network are as small as a bias. What a GPU launches for each of them takes longer
than its work.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

SMALL = 1024
"""Arrays with fewer elements than this are joined. fsdp splits none of them (a test compares this
number with that of `devices.parallel`, which a user of a training step does not import)."""


def is_small(x: Array) -> bool:
    """Whether an array is joined with others."""
    return x.size < SMALL


def join_small(arrays: Sequence[Array]) -> Float[Array, " n"]:
    """The elements of all small arrays as one vector, which may be empty."""
    nothing = jnp.zeros(0, jnp.float32)
    return jnp.concatenate([nothing, *(x.ravel() for x in arrays if is_small(x))])


def with_small_joined(function: Callable[[Any], Any], tree: Any) -> Any:
    """Apply a function of a tree that changes each element by itself, to the small arrays as one.

    The means over eight H100s and the layout of cifar10's gradients (benchmarks/chips.py): 1,813
    kernels a training step instead of 2,404; on one H100 1,570 instead of 1,759.
    """
    leaves, structure = jax.tree.flatten(tree)
    large = [x for x in leaves if not is_small(x)]
    joined, large = function((join_small(leaves), large))
    ends = np.cumsum([x.size for x in leaves if is_small(x)])
    small = iter(jnp.split(joined, ends[:-1]))
    rest = iter(large)
    results = [next(small).reshape(x.shape) if is_small(x) else next(rest) for x in leaves]
    return jax.tree.unflatten(structure, results)
