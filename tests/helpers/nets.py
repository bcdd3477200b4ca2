"""Small networks with non-zero parameters, and helpers that run them."""

import dataclasses
import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.models.basic_unet import BasicUNet
from ddpm_jax.models.conv_unet import ConvUNet
from ddpm_jax.models.unet import UNet

UNET = UNet(
    image_size=8,
    channels=1,
    widths=(8, 16),
    attention=(False, True),
    layers_per_level=1,
    head_dim=8,
    num_classes=3,
    groups=4,
)
CONV_UNET = ConvUNet(
    image_size=8,
    channels=1,
    widths=(8, 16),
    time_embedding_dim=8,
    attention_sizes=(4,),
    head_dim=8,
    groups=4,
)
TINY = UNet(
    image_size=4,
    channels=1,
    widths=(8,),
    attention=(False,),
    layers_per_level=1,
    head_dim=8,
    groups=4,
)
SMALLEST = dataclasses.replace(TINY, middle="none")
TWO_LEVELS = dataclasses.replace(
    UNET, widths=(8, 8), attention=(False, True), up_attention=(False, False), middle="none"
)
BLOCK = dataclasses.replace(CONV_UNET, image_size=4, widths=(8,), attention_sizes=())
NETS = {"unet": UNET, "conv_unet": CONV_UNET, "basic_unet": BasicUNet(image_size=8, channels=1)}


def random_like(tree, scale=0.15):
    """Add normal noise of standard deviation `scale` to every leaf, so that none stays zero."""
    rng = np.random.default_rng(0)

    def add_noise(x):
        noisy = np.asarray(x) + np.float32(scale) * rng.standard_normal(x.shape, np.float32)
        return jnp.asarray(noisy)

    return jax.tree.map(add_noise, tree)


def inputs(net, batch=2):
    """A random xt and t, and labels 0, 1, 2, 0, ... for a batch; None if the net takes none."""
    rng = np.random.default_rng(1)
    xt = rng.standard_normal((batch, *net.image_shape), np.float32)
    t = rng.integers(0, 1000, batch)
    labels = jnp.asarray(np.arange(batch) % 3, jnp.int32) if net.takes_labels else None
    return jnp.asarray(xt), jnp.asarray(t, jnp.int32), labels


@partial(jax.jit, static_argnums=0, static_argnames="dtype")
def apply(net, params, *arguments, **options):
    """`net.apply`, compiled once per network and kind of arguments."""
    return net.apply(params, *arguments, **options)


def by_path(tree) -> dict[str, np.ndarray]:
    """The leaves of a tree by path, such as "conv_in/kernel"."""
    leaves = jax.tree.leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in leaves
    }


@functools.cache
def draw(net):
    """The network and parameters for it, none of them zero.

    Their size is about that of `net.init`, which would be a program to compile for each network.
    """
    rng = np.random.default_rng(0)

    def draw_leaf(path, leaf):
        std = 0.15 if leaf.ndim < 2 else max(0.15, np.prod(leaf.shape[:-1]) ** -0.5)
        mean = 1 if path[-1].key == "scale" else 0
        return jnp.asarray(mean + std * rng.standard_normal(leaf.shape), leaf.dtype)

    return net, jax.tree.map_with_path(draw_leaf, net.shapes())


@partial(jax.jit, static_argnums=0)
def submodule_outputs(net, params) -> dict:
    """The output of every submodule by path, and of the network at ""."""
    variables = {"params": params}
    out, state = net.module().apply(variables, *inputs(net), None, capture_intermediates=True)
    is_output = lambda value: isinstance(value, tuple)  # noqa: E731
    leaves = jax.tree.leaves_with_path(state["intermediates"], is_leaf=is_output)
    outputs = {"": out}
    for path, value in leaves:
        name = jax.tree_util.keystr(path[:-1], simple=True, separator="/")
        outputs[name] = value[0]
    return outputs


def exact_group_norm(x, scale, bias, groups, eps, xp=np):
    """Group normalisation of x (b, h, w, c) by its formula, with NumPy or jax.numpy."""
    b, h, w, c = x.shape
    grouped = x.reshape(b, h, w, groups, c // groups)
    mean = grouped.mean((1, 2, 4), keepdims=True)
    variance = ((grouped - mean) ** 2).mean((1, 2, 4), keepdims=True)
    normalised = ((grouped - mean) / xp.sqrt(variance + eps)).reshape(x.shape)
    return normalised * scale[None, None, None] + bias[None, None, None]
