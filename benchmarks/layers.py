"""Compare layers that are written for speed with the ones of Flax and JAX.

    python benchmarks/layers.py

Each line shows the time of the stock layer divided by the time of ours, for the forward pass or
the gradients: the median of interleaved pairs in one run, with the lowest and the highest. Above 1,
ours is faster.
"""

import time
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from sides import ratio

from ddpm_jax.devices import platform as platforms
from ddpm_jax.models.attention import attend
from ddpm_jax.models.kernels.matmul import matmul
from ddpm_jax.models.kernels.winograd import conv3x3, direct
from ddpm_jax.models.norms import group_norm

PAIRS = 11


def our_norm(x):
    """Group norm by sums over channels."""
    return group_norm(x, jnp.ones(x.shape[-1]), jnp.zeros(x.shape[-1]), 32, 1e-5)


def stock_norm(x):
    """Flax's group norm."""
    params = {"scale": jnp.ones(x.shape[-1]), "bias": jnp.zeros(x.shape[-1])}
    return nn.GroupNorm(32, epsilon=1e-5).apply({"params": params}, x)


def our_attention(q, k, v):
    """Our attention of arrays (b, pixels, heads, channels), with the transposes that it needs."""
    return attend(*(x.swapaxes(1, 2) for x in (q, k, v))).swapaxes(1, 2)


def seconds(function: Callable, *arrays: jax.Array) -> float:
    """The seconds of one call."""
    began = time.perf_counter()
    jax.block_until_ready(function(*arrays))
    return time.perf_counter() - began


def gradients(function: Callable, num_arrays: int) -> Callable:
    """The gradients of the sum of a function's squared outputs, for all its arrays."""
    return jax.grad(lambda *arrays: jnp.sum(function(*arrays) ** 2), range(num_arrays))


def compare(name: str, stock: Callable, ours: Callable, *shapes: tuple[int, ...]) -> None:
    """Print the ratios of one layer, forward and gradients, on random arrays of these shapes."""
    keys = jax.random.split(jax.random.key(0), len(shapes))
    arrays = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]
    of_gradients = [gradients(function, len(shapes)) for function in (stock, ours)]
    for kind, pair in {"forward": (stock, ours), "gradients": of_gradients}.items():
        calls = [partial(seconds, jax.jit(function), *arrays) for function in pair]
        print(f"{name:<48}{kind:<10} {ratio(*calls, PAIRS)}", flush=True)


def main() -> None:
    """Print a line for each layer and kind."""
    platforms.order_for_memory()
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}")
    compare("3x3 convolution 16x32x32x64", direct, conv3x3, (16, 32, 32, 64), (3, 3, 64, 64))
    compare("3x3 convolution 16x8x8x256", direct, conv3x3, (16, 8, 8, 256), (3, 3, 256, 256))
    compare("group norm 16x32x32x64", stock_norm, our_norm, (16, 32, 32, 64))
    compare("product of 4096x256 and 256x256", jnp.matmul, matmul, (4096, 256), (256, 256))
    stock = jax.nn.dot_product_attention
    heads = (32, 196, 8, 8)
    compare("attention 32 images, 8 heads of 8, 196 pixels", stock, our_attention, *[heads] * 3)
    head = (8, 256, 1, 256)
    compare("attention 8 images, 1 head of 256, 256 pixels", stock, our_attention, *[head] * 3)


if __name__ == "__main__":
    main()
