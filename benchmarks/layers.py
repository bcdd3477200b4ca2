"""Layers written for speed against the stock ones: python benchmarks/layers.py

Each row is the time of the stock layer over that of ours, forward and gradient, for one interleaved run of pairs:
the median ratio, and the lowest and highest. Above 1 ours is faster.
"""

import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.models.attention import attend
from ddpm_jax.models.layers import group_norm

PAIRS = 11


def ours_norm(x):
    """Group norm by channel sums."""
    return group_norm(x, jnp.ones(x.shape[-1]), jnp.zeros(x.shape[-1]), 32, 1e-5)


def stock_norm(x):
    """Flax's group norm."""
    return nn.GroupNorm(32, epsilon=1e-5).apply(
        {"params": {"scale": jnp.ones(x.shape[-1]), "bias": jnp.zeros(x.shape[-1])}}, x
    )


def ours_attention(x):
    """Attention with the heads in front."""
    return attend(x, x, x)


def stock_attention(x):
    """JAX's attention."""
    q = x.swapaxes(1, 2)
    return jax.nn.dot_product_attention(q, q, q).swapaxes(1, 2)


def seconds(function, x) -> float:
    """How long one call takes."""
    began = time.perf_counter()
    jax.block_until_ready(function(x))
    return time.perf_counter() - began


def compare(name: str, stock, ours, shape: tuple[int, ...]) -> None:
    """Prints the ratios of one layer, forward and gradient."""
    x = jax.random.normal(jax.random.key(0), shape)
    for kind in ("forward", "gradient"):
        pair = [
            f if kind == "forward" else jax.grad(lambda x, f=f: jnp.sum(f(x) ** 2))
            for f in (stock, ours)
        ]
        pair = [jax.jit(function) for function in pair]
        for function in pair:
            seconds(function, x)
        ratios = [seconds(pair[0], x) / seconds(pair[1], x) for _ in range(PAIRS)]
        print(
            f"{name:<48}{kind:<10}{np.median(ratios):6.2f}  ({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}")
    compare("group norm 16x32x32x64", stock_norm, ours_norm, (16, 32, 32, 64))
    compare(
        "attention 32 images, 8 heads of 8, 196 pixels",
        stock_attention,
        ours_attention,
        (32, 8, 196, 8),
    )
    compare(
        "attention 8 images, 1 head of 256, 256 pixels",
        stock_attention,
        ours_attention,
        (8, 1, 256, 256),
    )
