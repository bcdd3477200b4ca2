"""Attention by cuDNN, which keeps the logits on the chip instead of writing them to memory."""

from collections.abc import Callable, Sequence
from typing import Literal

import jax
from jaxtyping import Array, Float

from ddpm_jax.models.kernels.switch import kernels_are_on

OLDEST_GPU = 8
"""The generation (major compute capability) of the A100, the oldest with this attention."""
WIDEST_HEAD = 128
"""The most channels of a head that cuDNN takes on every generation. On the H100 it takes 256."""
WIDE_HEAD_GPU = 9
"""The generation of the H100."""


def fused_attention(
    q: Float[Array, "b heads n d"],
    k: Float[Array, "b heads m d"],
    v: Float[Array, "b heads m d"],
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "b heads n d"]:
    """softmax(q k^T / sqrt(d)) v by `jax.nn.dot_product_attention`, with a float32 softmax.

    By cuDNN it has a gradient, but no forward mode and no second derivative.
    """
    by_token = (x.swapaxes(1, 2) for x in (q, k, v))  # (b, n or m, heads, d)
    mixed = jax.nn.dot_product_attention(*by_token, implementation=implementation)
    return mixed.swapaxes(1, 2)


def cudnn_attends(plain: Callable, q: Array, k: Array, v: Array) -> bool:
    """Whether `fused_attention` can replace the function `plain` on all GPUs of this process.

    cuDNN takes bfloat16 and float16, and heads of a multiple of 8 channels, on GPUs from the A100
    on. JAX has no gradient for an odd number of queries or keys. False if kernels are off or cuDNN
    is not installed.
    """
    if q.dtype.itemsize != 2 or not kernels_are_on():
        return False
    if not generations_attend(gpu_generations(), q.shape[-1]):
        return False
    try:
        # JAX refuses odd numbers in the gradient alone, so the gradient is traced, too.
        fused = jax.make_jaxpr(lambda *arrays: jax.vjp(fused_attention, *arrays)[0])(q, k, v)
    except (RuntimeError, ValueError):
        return False
    # The result of JAX's attention lacks the sharding of an explicit mesh, and some of the axes of
    # `shard_map` over which it varies. The printed types show both.
    return str(fused.out_avals) == str(jax.make_jaxpr(plain)(q, k, v).out_avals)


def gpu_generations() -> list[int]:
    """The major compute capability of each NVIDIA GPU of this process, which may have none."""
    try:
        devices = jax.local_devices(backend="cuda")
    except RuntimeError:
        return []
    return [int(device.compute_capability.split(".")[0]) for device in devices]


def generations_attend(generations: Sequence[int], head_dim: int) -> bool:
    """Whether there are GPUs, and cuDNN has attention with such heads for all generations.

    The limits are those for gradients, the strictest ones in the Support Matrix of
    https://docs.nvidia.com/deeplearning/cudnn/frontend/latest/operations/Attention.html.
    """
    if not generations:
        return False
    if head_dim > WIDEST_HEAD:
        return all(generation == WIDE_HEAD_GPU for generation in generations)
    return all(generation >= OLDEST_GPU for generation in generations)
