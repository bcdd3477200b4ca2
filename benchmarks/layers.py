"""Compare layers that are written for speed with the ones of Flax and JAX.

    python benchmarks/layers.py

Each line shows the time of the stock layer divided by the time of ours, for the forward pass or the
gradient: the median of interleaved pairs in one run, with the lowest and the highest. Above 1, ours
is faster.
"""

import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.models.attention import attend
from ddpm_jax.models.norms import group_norm

PAIRS = 11


def our_norm(x):
    """Group norm by sums over channels."""
    return group_norm(x, jnp.ones(x.shape[-1]), jnp.zeros(x.shape[-1]), 32, 1e-5)


def stock_norm(x):
    """Flax's group norm."""
    params = {"scale": jnp.ones(x.shape[-1]), "bias": jnp.zeros(x.shape[-1])}
    return nn.GroupNorm(32, epsilon=1e-5).apply({"params": params}, x)


def our_attention(x):
    """Our attention. Arrays are (b, heads, pixels, channels)."""
    return attend(x, x, x)


def stock_attention(x):
    """JAX's attention."""
    q = x.swapaxes(1, 2)
    return jax.nn.dot_product_attention(q, q, q).swapaxes(1, 2)


def seconds(function, x) -> float:
    """The seconds of one call."""
    began = time.perf_counter()
    jax.block_until_ready(function(x))
    return time.perf_counter() - began


def gradient(function):
    """The gradient of the sum of a function's squared outputs."""
    return jax.grad(lambda x: jnp.sum(function(x) ** 2))


def compare(name: str, stock, ours, shape: tuple[int, ...]) -> None:
    """Print the ratios of one layer, forward and gradient."""
    x = jax.random.normal(jax.random.key(0), shape)
    for kind in ("forward", "gradient"):
        pair = (stock, ours) if kind == "forward" else (gradient(stock), gradient(ours))
        jitted_stock, jitted_ours = (jax.jit(function) for function in pair)
        # The first call compiles.
        seconds(jitted_stock, x)
        seconds(jitted_ours, x)
        ratios = [seconds(jitted_stock, x) / seconds(jitted_ours, x) for _ in range(PAIRS)]
        spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{name:<48}{kind:<10}{np.median(ratios):6.2f}  {spread}")


if __name__ == "__main__":
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}")
    compare("group norm 16x32x32x64", stock_norm, our_norm, (16, 32, 32, 64))
    title = "attention 32 images, 8 heads of 8, 196 pixels"
    compare(title, stock_attention, our_attention, (32, 8, 196, 8))
    title = "attention 8 images, 1 head of 256, 256 pixels"
    compare(title, stock_attention, our_attention, (8, 1, 256, 256))
