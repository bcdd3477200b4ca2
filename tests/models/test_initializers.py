"""Initialisation: what starts at zero, how wide the rest is drawn, and of which keys."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers.nets import CONV_UNET, NETS, SMALLEST, TINY, UNET, by_path, captured

from ddpm_jax.models.conv_unet import ConvUNet


def test_a_fresh_ddpm_net_is_the_identity_in_every_branch_and_outputs_zero():
    net = dataclasses.replace(TINY, attention=(True,), up_attention=(False,))
    states = captured(net, net.init(jax.random.key(0)))
    np.testing.assert_array_equal(states[""], 0)
    np.testing.assert_array_equal(states["down_0/resnet_0"], states["conv_in"])  # conv2 starts at 0
    np.testing.assert_array_equal(states["middle"], states["down_0"][-1])
    # to_out starts at 0.
    np.testing.assert_array_equal(states["down_0/attention_0"], states["down_0/resnet_0"])
    assert np.abs(states["up_0"][-1]).max() > 0


def check_uniform(name, value, bound):
    assert np.abs(value).max() <= bound * (1 + 1e-6), name
    if value.size >= 64:
        assert np.abs(value).max() > 0.9 * bound, name
        assert abs(value.std() / (bound / np.sqrt(3)) - 1) < 3 / np.sqrt(value.size), name
        assert abs(value.mean()) < 4 * bound / np.sqrt(3 * value.size), name


def fans(kernel):
    window = np.prod(kernel.shape[:-2], dtype=int)
    return window * kernel.shape[-2], window * kernel.shape[-1]


def test_ddpm_kernels_are_fan_avg_uniform():
    zero = ("conv2/kernel", "to_out/kernel", "conv_out/kernel")
    for path, leaf in by_path(UNET.init(jax.random.key(0))).items():
        if path == "class_embedding/embedding":
            assert abs(leaf.std() - 1) < 4 / np.sqrt(2 * leaf.size)
        elif path.endswith("kernel") and not path.endswith(zero):
            check_uniform(path, leaf, np.sqrt(6 / sum(fans(leaf))))
        else:
            np.testing.assert_array_equal(leaf, 1 if path.endswith("scale") else 0, path)


@pytest.mark.parametrize(
    "net", [CONV_UNET, NETS["basic_unet"], dataclasses.replace(UNET, init_scheme="torch")], ids=str
)
def test_torch_kernels_and_biases_are_within_one_over_root_fan_in(net):
    leaves = by_path(net.init(jax.random.key(0)))
    for path, kernel in leaves.items():
        if path.endswith("kernel"):
            transposed = isinstance(net, ConvUNet) and path.startswith("upsample")
            fan_in = 4 * kernel.shape[-1] if transposed else fans(kernel)[0]
            check_uniform(path, kernel, fan_in**-0.5)
            check_uniform(path, leaves[path.replace("kernel", "bias")], fan_in**-0.5)


def test_init_depends_on_the_key_and_each_leaf_on_its_path_alone():
    ours, again, other = (by_path(UNET.init(jax.random.key(seed))) for seed in (0, 0, 1))
    without = by_path(dataclasses.replace(UNET, num_classes=None).init(jax.random.key(0)))
    assert set(ours) - set(without) == {"class_embedding/embedding"}
    for path, leaf in ours.items():
        assert leaf.dtype == np.float32
        np.testing.assert_array_equal(leaf, again[path])
        np.testing.assert_array_equal(leaf, without.get(path, leaf))
        assert np.array_equal(leaf, other[path]) == (np.ptp(leaf) == 0), path
    kernels = [leaf.tobytes() for leaf in ours.values() if np.ptp(leaf)]
    assert len(set(kernels)) == len(kernels)


def test_init_works_under_jit():
    eager, jitted = SMALLEST.init(jax.random.key(3)), jax.jit(SMALLEST.init)(jax.random.key(3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), eager, jitted)
