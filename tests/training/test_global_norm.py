"""The norm of a gradient, and clipping by it."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.training.global_norm import global_norm
from ddpm_jax.training.optimizer import clip_by_global_norm
from ddpm_jax.training.small_arrays import SMALL

SHAPES = {
    "bias": (7,),
    "scale": (3, 5),
    "step": (),
    "kernel": (3, 3, 8, SMALL // 64),
    "dense": (SMALL, SMALL // 64),
    "wide": (2, SMALL),
}
LARGE = {"kernel", "dense", "wide"}


def gradients(seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(rng.standard_normal(shape), jnp.float32) for name, shape in SHAPES.items()
    }


@pytest.mark.parametrize("names", [tuple(SHAPES), ("kernel",), ("bias", "step")], ids=str)
def test_each_large_array_is_squared_and_summed_once_and_the_rest_together(names):
    tree = {name: gradients()[name] for name in names}
    expected = np.sqrt(sum(np.sum(np.float64(leaf) ** 2) for leaf in tree.values()))
    np.testing.assert_allclose(global_norm(tree), expected, rtol=1e-6)
    jaxpr = str(jax.make_jaxpr(global_norm)(tree))
    large = LARGE & set(names)
    assert jaxpr.count("= square ") == len(large) + 1
    assert jaxpr.count("= reduce_sum[") == len(large) + 2
    # Sums of one length are added before they are joined.
    lengths = {SHAPES[name][-1] for name in large}
    assert re.search(rf"f32\[{sum(lengths)}\] = optimization_barrier", jaxpr)


@pytest.mark.parametrize("max_norm", [1.0, 1e6])
def test_clipping_is_that_of_optax(max_norm):
    tree = gradients()
    ours = clip_by_global_norm(max_norm)
    theirs = optax.clip_by_global_norm(max_norm)
    assert ours.init(tree) == theirs.init(tree)
    clipped, _ = jax.jit(ours.update)(tree, ours.init(tree))
    expected, _ = jax.jit(theirs.update)(tree, theirs.init(tree))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), clipped, expected)
