"""A mesh of two virtual devices whose axis is explicit, and arrays split over it."""

import jax
from jax.sharding import NamedSharding, PartitionSpec

EXPLICIT = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
ROWS = PartitionSpec("data")


def split(mesh, tree, spec=ROWS):
    """Put the arrays of a tree on the mesh; by default, their first axis is split."""
    return jax.device_put(tree, NamedSharding(mesh, spec))
