"""Attention by cuDNN, which keeps the logits on the chip instead of writing them to memory."""

from collections.abc import Sequence
from typing import Literal

import jax
from jaxtyping import Array, Float

from ddpm_jax.models.kernels.switch import kernels_are_on

OLDEST_GPU = 8
"""The first generation of NVIDIA's GPUs with this attention, that of the A100."""
WIDE_HEAD = 128
"""Channels of the widest head of every generation. That of the H100 also takes 256."""
WIDE_HEAD_GPU = 9


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


def cudnn_attends(q: Array, k: Array, v: Array) -> bool:
    """Whether cuDNN computes `fused_attention` and its gradient for these arrays on a GPU.

    It takes bfloat16 and float16, an even number of queries and of keys, and heads of a multiple of
    8 channels, on GPUs from the A100 on. False if cuDNN is not installed or kernels are off.
    """
    if q.dtype.itemsize != 2 or not kernels_are_on():
        return False
    if not generations_attend(gpu_generations(), q.shape[-1]):
        return False
    try:
        # JAX checks the gradient in more detail than the result alone.
        jax.eval_shape(lambda *arrays: jax.vjp(fused_attention, *arrays)[0], q, k, v)
    except (RuntimeError, ValueError):
        return False
    return True


def gpu_generations() -> list[int]:
    """The major compute capability of each NVIDIA GPU of this process, which may have none."""
    try:
        devices = jax.local_devices(backend="cuda")
    except RuntimeError:
        return []
    return [int(device.compute_capability.split(".")[0]) for device in devices]


def generations_attend(generations: Sequence[int], head_dim: int) -> bool:
    """Whether cuDNN computes attention with these heads on all of these generations of GPUs.

    https://docs.nvidia.com/deeplearning/cudnn/frontend/latest/operations/Attention.html, Support
    Matrix, whose rows for gradients are the narrowest.
    """
    if head_dim > WIDE_HEAD:
        return all(generation == WIDE_HEAD_GPU for generation in generations)
    return all(generation >= OLDEST_GPU for generation in generations)
