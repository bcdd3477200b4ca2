"""Self-attention over the pixels of an image."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.models.initializers import Init
from ddpm_jax.models.kernels.matmul import matmul, matmul_by_rows
from ddpm_jax.models.layers import GroupNorm, dense


def attend(
    q: Float[Array, "b heads n d"], k: Float[Array, "b heads n d"], v: Float[Array, "b heads n d"]
) -> Float[Array, "b heads n d"]:
    """softmax(q k^T / sqrt(d)) v: Eq. 1, Vaswani et al. 2017; the softmax is float32.

    Plain products with the heads in front, and the division last, where it is smallest: on a CPU this beats the
    layout of `jax.nn.dot_product_attention` (benchmarks/layers.py).
    """
    if v.dtype == jnp.float32:
        by_rows, product = matmul_by_rows, matmul
    else:
        wide = partial(jnp.matmul, preferred_element_type=jnp.float32)  # float16 would overflow
        by_rows, product = lambda a, b: wide(a, b.swapaxes(-1, -2)), wide
    logits = by_rows(q * q.shape[-1] ** -0.5, k)
    weights = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, -1, keepdims=True)))
    return (product(weights.astype(v.dtype), v) / jnp.sum(weights, -1, keepdims=True)).astype(
        v.dtype
    )


class SelfAttention(nn.Module):
    """x plus self-attention over its pixels, after a group norm, over `scale`; heads of `head_dim` channels or one."""

    head_dim: int | None
    groups: int = 32
    eps: float = 1e-5
    init_scheme: Init = "ddpm"
    scale: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        head_dim = self.head_dim or c
        if c % head_dim:
            raise ValueError(
                f"heads of {head_dim} channels do not divide {c} channels: change head_dim or the width"
            )
        pixels = GroupNorm(self.groups, self.eps, name="group_norm")(x) if self.groups else x
        pixels = pixels.reshape(b, h * w, c)
        q, k, v = (
            dense(pixels, c, name, init=self.init_scheme)
            .reshape(b, h * w, c // head_dim, head_dim)
            .transpose(0, 2, 1, 3)
            for name in ("to_q", "to_k", "to_v")
        )
        mixed = attend(q, k, v).transpose(0, 2, 1, 3).reshape(b, h * w, c)
        return (
            x + dense(mixed, c, "to_out", init=self.init_scheme, zero=True).reshape(x.shape)
        ) / self.scale
