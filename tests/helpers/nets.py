"""Small nets with parameters none of which is zero, and what goes in and comes out of them."""

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
    """`tree` with every leaf moved, so that nothing is zero-initialised any more."""
    rng = np.random.default_rng(0)

    def move(x):
        return np.asarray(x) + np.float32(scale) * rng.standard_normal(x.shape, np.float32)

    return jax.tree.map(lambda x: jnp.asarray(move(x)), tree)


def inputs(net, batch=2):
    """xt, t and labels."""
    rng = np.random.default_rng(1)
    xt = jnp.asarray(rng.standard_normal((batch, *net.image_shape), np.float32))
    t, labels = rng.integers(0, 1000, batch), np.arange(batch) % 3
    return xt, jnp.asarray(t, jnp.int32), jnp.asarray(labels, jnp.int32)


@partial(jax.jit, static_argnums=0, static_argnames="dtype")
def apply(net, params, *arguments, **options):
    """`net.apply`, compiled once a net and kind of arguments."""
    return net.apply(params, *arguments, **options)


def by_path(tree) -> dict[str, np.ndarray]:
    """The leaves by their path."""
    leaves = jax.tree.leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in leaves
    }


@functools.cache
def draw(net):
    """The net with parameters none of which is zero."""
    return net, random_like(net.init(jax.random.key(0)))


@partial(jax.jit, static_argnums=0)
def captured(net, params) -> dict:
    """What every submodule returned, by path, and the net's output."""
    variables = {"params": params}
    out, state = net.module().apply(variables, *inputs(net), None, capture_intermediates=True)
    is_output = lambda value: isinstance(value, tuple)  # noqa: E731
    leaves = jax.tree.leaves_with_path(state["intermediates"], is_leaf=is_output)
    return {"": out} | {
        jax.tree_util.keystr(path[:-1], simple=True, separator="/"): v[0] for path, v in leaves
    }
