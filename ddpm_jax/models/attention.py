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
    """softmax(q k^T / sqrt(d)) v, Eq. 1, Vaswani et al. 2017. The softmax is float32.

    On a CPU this is faster than `jax.nn.dot_product_attention` (benchmarks/layers.py): the products
    are plain matrix products with the heads as a leading axis, and the softmax's division comes
    last, where the array is smallest.
    """
    if v.dtype == jnp.float32:
        by_rows = matmul_by_rows
        product = matmul
    else:
        # The products accumulate in float32, because float16 would overflow.
        product = partial(jnp.matmul, preferred_element_type=jnp.float32)
        by_rows = lambda a, b: product(a, b.swapaxes(-1, -2))  # noqa: E731
    logits = by_rows(q * q.shape[-1] ** -0.5, k)  # (b, heads, n, n)
    weights = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, -1, keepdims=True)))
    mixed = product(weights.astype(v.dtype), v)  # (b, heads, n, d)
    total = jnp.sum(weights, -1, keepdims=True)  # (b, heads, n, 1)
    return (mixed / total).astype(v.dtype)


class SelfAttention(nn.Module):
    """(x + attention(group_norm(x))) / scale, over the pixels of x, without position embeddings.

    Each head has `head_dim` channels; None means a single head. With 0 groups there is no norm.
    Raise ValueError if the heads do not divide the channels.
    """

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
                f"Heads of {head_dim} channels do not divide {c} channels: "
                "change head_dim or the width."
            )
        normed = x
        if self.groups:
            normed = GroupNorm(self.groups, self.eps, name="group_norm")(x)
        pixels = normed.reshape(b, h * w, c)

        def project(name):
            heads = dense(pixels, c, name, init=self.init_scheme)  # (b, h * w, c)
            heads = heads.reshape(b, h * w, c // head_dim, head_dim)
            return heads.transpose(0, 2, 1, 3)  # (b, heads, h * w, head_dim)

        q = project("to_q")
        k = project("to_k")
        v = project("to_v")
        mixed = attend(q, k, v)  # (b, heads, h * w, head_dim)
        mixed = mixed.transpose(0, 2, 1, 3).reshape(b, h * w, c)
        out = dense(mixed, c, "to_out", init=self.init_scheme, zero=True).reshape(x.shape)
        return (x + out) / self.scale
