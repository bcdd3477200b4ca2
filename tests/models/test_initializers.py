"""Initialisation: which parameters start at zero, the ranges of the others, and their keys."""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.nets import CONV_UNET, NETS, SMALLEST, TINY, TWO_LEVELS, by_path, submodule_outputs

from ddpm_jax.devices import parallel
from ddpm_jax.models.conv_unet import ConvUNet
from ddpm_jax.models.initializers import (
    InitDistribution,
    ParamSpec,
    check_specs,
    draw_parameters,
    draw_split_parameters,
    is_spec,
)
from ddpm_jax.models.norms import GroupNorm


def test_a_fresh_ddpm_network_outputs_zero_and_its_residual_branches_are_zero():
    net = dataclasses.replace(TINY, attention=(True,), up_attention=(False,))
    states = submodule_outputs(net, net.init(jax.random.key(0)))
    np.testing.assert_array_equal(states[""], 0)
    # conv2 of every residual block starts at 0.
    np.testing.assert_array_equal(states["down_0/resnet_0"], states["conv_in"])
    np.testing.assert_array_equal(states["middle"], states["down_0"][-1])
    # to_out of the attention starts at 0.
    np.testing.assert_array_equal(states["down_0/attention_0"], states["down_0/resnet_0"])
    assert np.abs(states["up_0"][-1]).max() > 0


class NormTwice(nn.Module):
    """A layer that is applied twice."""

    @nn.compact
    def __call__(self, x):
        norm = GroupNorm(1, name="norm")
        return norm(norm(x))


def test_a_layer_may_be_applied_twice():
    x = jnp.ones((1, 2, 2, 4))
    specs = jax.eval_shape(NormTwice().init, jax.random.key(0), x)
    assert [spec.value.shape for spec in jax.tree.leaves(specs, is_leaf=is_spec)] == [(4,), (4,)]


def test_a_layer_of_flax_is_refused_by_the_path_of_its_parameter():
    class Dense(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, name="dense")(GroupNorm(1, name="norm")(x))

    specs = jax.eval_shape(Dense().init, jax.random.key(0), jnp.ones((1, 2, 2, 4)))["params"]
    with pytest.raises(ValueError, match=r"parameter dense/(bias|kernel) .*: use ddpm_jax\.models"):
        check_specs(specs)
    assert check_specs(specs["norm"]) == specs["norm"]


def assert_uniform(name, value, bound):
    """Assert that the values look like draws from U(-bound, bound)."""
    assert np.abs(value).max() <= bound * (1 + 1e-6), name
    if value.size >= 64:
        assert np.abs(value).max() > 0.9 * bound, name
        assert abs(value.std() / (bound / np.sqrt(3)) - 1) < 3 / np.sqrt(value.size), name
        assert abs(value.mean()) < 4 * bound / np.sqrt(3 * value.size), name


def fans(kernel):
    """The fan-in and fan-out of a kernel (..., i, o)."""
    window = np.prod(kernel.shape[:-2], dtype=int)
    return window * kernel.shape[-2], window * kernel.shape[-1]


def test_ddpm_kernels_are_fan_avg_uniform():
    zero = ("conv2/kernel", "to_out/kernel", "conv_out/kernel")
    for path, leaf in by_path(TWO_LEVELS.init(jax.random.key(0))).items():
        if path == "class_embedding/embedding":
            assert abs(leaf.std() - 1) < 4 / np.sqrt(2 * leaf.size)
        elif path.endswith("kernel") and not path.endswith(zero):
            assert_uniform(path, leaf, np.sqrt(6 / sum(fans(leaf))))
        else:
            np.testing.assert_array_equal(leaf, 1 if path.endswith("scale") else 0, path)


@pytest.mark.parametrize(
    "net",
    [CONV_UNET, NETS["basic_unet"], dataclasses.replace(TWO_LEVELS, init_scheme="torch")],
    ids=str,
)
def test_torch_kernels_and_biases_are_uniform_within_1_over_sqrt_fan_in(net):
    leaves = by_path(net.init(jax.random.key(0)))
    for path, kernel in leaves.items():
        if path.endswith("kernel"):
            transposed = isinstance(net, ConvUNet) and path.startswith("upsample")
            fan_in = 4 * kernel.shape[-1] if transposed else fans(kernel)[0]
            assert_uniform(path, kernel, fan_in**-0.5)
            assert_uniform(path, leaves[path.replace("kernel", "bias")], fan_in**-0.5)


def test_each_parameter_depends_only_on_the_key_and_its_path():
    ours, again, other = (by_path(TWO_LEVELS.init(jax.random.key(seed))) for seed in (0, 0, 1))
    without = by_path(dataclasses.replace(TWO_LEVELS, num_classes=None).init(jax.random.key(0)))
    assert set(ours) - set(without) == {"class_embedding/embedding"}
    for path, leaf in ours.items():
        assert leaf.dtype == np.float32
        np.testing.assert_array_equal(leaf, again[path])
        np.testing.assert_array_equal(leaf, without.get(path, leaf))
        assert np.array_equal(leaf, other[path]) == (np.ptp(leaf) == 0), path
    kernels = [leaf.tobytes() for leaf in ours.values() if np.ptp(leaf)]
    assert len(set(kernels)) == len(kernels)


def test_init_works_under_jit():
    eager = SMALLEST.init(jax.random.key(3))
    jitted = jax.jit(SMALLEST.init)(jax.random.key(3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), eager, jitted)


def test_parameters_under_x64_are_the_same_float32():
    expected = CONV_UNET.init(jax.random.key(0))
    with jax.enable_x64(True):
        ours = CONV_UNET.init(jax.random.key(0))
    jax.tree.map(partial(np.testing.assert_array_equal, strict=True), ours, expected)


def test_split_parameters_are_the_same_numbers_and_whole_on_no_device():
    shape = jax.ShapeDtypeStruct((3, 1 << 14), jnp.float32)
    kinds = ("uniform", "normal", "constant")
    specs = {kind: ParamSpec(shape, InitDistribution(kind, 0.3)) for kind in kinds}
    shardings = parallel.state_shardings(dict.fromkeys(kinds, shape), 8)
    key = jax.random.key(0)
    draw = jax.jit(lambda key: draw_split_parameters(key, specs, shardings))
    memory = draw.lower(key).compile().memory_analysis()
    assert memory.output_size_in_bytes <= 1.01 * len(kinds) * shape.size * 4 / 8
    assert memory.temp_size_in_bytes < shape.size * 4
    split = draw_split_parameters(key, specs, shardings)
    assert {kind: leaf.sharding for kind, leaf in split.items()} == shardings
    jax.tree.map(np.testing.assert_array_equal, split, draw_parameters(key, specs))
