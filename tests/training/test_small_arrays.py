"""Small arrays joined into one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.devices.parallel import MIN_SHARDED_SIZE
from ddpm_jax.training.small_arrays import SMALL, with_small_joined

SHAPES = {"step": (), "large": (2, SMALL), "bias": (7,), "limit": (SMALL,), "kernel": (3, 5)}


@pytest.mark.parametrize("names", [tuple(SHAPES), ("large",), ("bias", "step"), ()], ids=str)
def test_a_function_sees_small_arrays_as_one_and_changes_each_where_it_stands(names):
    rng = np.random.default_rng(0)
    tree = {name: jnp.asarray(rng.normal(size=SHAPES[name]), jnp.float32) for name in names}
    seen = []

    def double(arrays):
        seen.extend(x.shape for x in jax.tree.leaves(arrays))
        return jax.tree.map(lambda x: 2 * x, arrays)

    doubled = with_small_joined(double, tree)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(2 * x, y), tree, doubled)
    sizes = {name: int(np.prod(SHAPES[name])) for name in names}
    joined = sum(size for size in sizes.values() if size < SMALL)
    large = [SHAPES[name] for name in sorted(names) if sizes[name] >= SMALL]
    assert seen == [(joined,), *large]


def test_arrays_that_fsdp_splits_are_not_joined():
    """Joining them would gather them on every device."""
    assert SMALL <= MIN_SHARDED_SIZE
