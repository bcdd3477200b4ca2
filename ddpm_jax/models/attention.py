"""Attention with several heads, and self-attention over the pixels of an image."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ddpm_jax.models.initializers import Init
from ddpm_jax.models.kernels.cudnn_attention import cudnn_attends, fused_attention
from ddpm_jax.models.kernels.matmul import matmul, matmul_by_rows, matmul_by_rows_to_float32
from ddpm_jax.models.layers import dense
from ddpm_jax.models.norms import GroupNorm

# From this many keys on, the logits of all queries would take most of a network's memory, so they
# are computed for one chunk of queries at a time (tests/parity/stable_diffusion.py).
MANY_KEYS = 4096
QUERIES_AT_ONCE = 256

AttentionKind = Literal["cross_attention", "self_attention"]
"""The collections in which the layers of a network sow their queries and keys."""


def attend(
    q: Float[Array, "b heads n d"],
    k: Float[Array, "b heads m d"],
    v: Float[Array, "b heads m d"],
    mask: Bool[Array, "n m"] | None = None,
) -> Float[Array, "b heads n d"]:
    """softmax(q k^T / sqrt(d)) v, Eq. 1, Vaswani et al. 2017. The softmax is float32.

    A query sees only the keys where the mask is true.
    On a CPU this is faster than `jax.nn.dot_product_attention` (benchmarks/layers.py): the products
    are plain matrix products with the heads as a leading axis, and the softmax's division comes
    last, where the array is smallest. Narrower dtypes than float32 divide first, or are computed by
    cuDNN on an NVIDIA GPU (`cudnn_attends`).
    """
    if mask is None and cudnn_attends(_attend_in_chunks, q, k, v):
        return _attend_by_platform(q, k, v)
    return _attend_in_chunks(q, k, v, mask)


# Outside of `jit`, `platform_dependent` takes the platform of JAX's default device, even for arrays
# on a CPU.
@partial(jax.jit, inline=True)
def _attend_by_platform(q, k, v):
    return jax.lax.platform_dependent(q, k, v, cuda=fused_attention, default=_attend_in_chunks)


def _attend_in_chunks(q, k, v, mask=None):
    """`attend` by plain products, for some of the queries at a time if there are many keys."""
    if k.shape[2] < MANY_KEYS:
        return _attend_at_once(q, k, v, mask)
    n = q.shape[2]
    num_chunks = -(-n // QUERIES_AT_ONCE)

    def split(array):
        """(..., n, c) -> (chunks, ..., queries of a chunk, c). The last query fills the rest."""
        rest = [(0, 0)] * (array.ndim - 2)
        missing = num_chunks * QUERIES_AT_ONCE - n
        array = jnp.pad(array, [*rest, (0, missing), (0, 0)], mode="edge")
        array = array.reshape(*array.shape[:-2], num_chunks, QUERIES_AT_ONCE, array.shape[-1])
        return jnp.moveaxis(array, -3, 0)

    chunks = jax.lax.map(
        lambda chunk: _attend_at_once(chunk[0], k, v, chunk[1]), jax.tree.map(split, (q, mask))
    )
    joined = jnp.moveaxis(chunks, 0, 2)  # (b, heads, chunks, queries of a chunk, d)
    return joined.reshape(*q.shape[:2], -1, v.shape[-1])[:, :, :n]


def _attend_at_once(q, k, v, mask):
    is_wide = v.dtype == jnp.float32
    by_rows = matmul_by_rows if is_wide else matmul_by_rows_to_float32
    logits = by_rows(q * q.shape[-1] ** -0.5, k)  # (b, heads, n, m)
    if mask is not None:
        logits = jnp.where(mask[None, None], logits, -jnp.inf)
    if not is_wide:
        # These dtypes are for GPUs and TPUs. A GPU divides on the chip: without cuDNN, a layer of
        # cifar10 and its gradient move 1.32 GB instead of 1.60 GB (docs/chips.md).
        return matmul(jax.nn.softmax(logits).astype(v.dtype), v)
    weights = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, -1, keepdims=True)))
    mixed = matmul(weights, v)  # (b, heads, n, d)
    total = jnp.sum(weights, -1, keepdims=True)  # (b, heads, n, 1)
    return mixed / total


def multi_head_attention(
    x: Float[Array, "b n c"],
    context: Float[Array, "b m e"],
    heads: int,
    names: tuple[str, str, str, str] = ("to_q", "to_k", "to_v", "to_out"),
    *,
    init: Init,
    use_bias: bool = True,
    zero: bool = False,
    mask: Bool[Array, "n m"] | None = None,
    kind: AttentionKind = "self_attention",
    sow: Callable | None = None,
) -> Float[Array, "b n c"]:
    """Attention of x to the context, Vaswani et al. 2017, section 3.2.2.

    `names` are those of the linear layers of queries, keys, values and output. `use_bias` is for
    the first three, `zero` makes the kernel of the last one start at 0 under the ddpm init. Pass
    the module's `sow` to record queries and keys, by their kind, when they are collected
    (`collect_attention`).
    """
    width = x.shape[-1]

    def project(source, name):
        projected = dense(source, width, name, init=init, use_bias=use_bias)
        by_head = projected.reshape(*source.shape[:2], heads, width // heads)
        return by_head.transpose(0, 2, 1, 3)  # (b, heads, n or m, c / heads)

    q = project(x, names[0])
    k = project(context, names[1])
    v = project(context, names[2])
    if sow is not None:
        sow(kind, "queries_and_keys", (q, k))
    mixed = attend(q, k, v, mask)  # (b, heads, n, c / heads)
    mixed = mixed.transpose(0, 2, 1, 3).reshape(x.shape)
    return dense(mixed, width, names[3], init=init, zero=zero)


def attention_probabilities(
    q: Float[Array, "b heads n d"], k: Float[Array, "b heads m d"]
) -> Float[Array, "b heads n m"]:
    """softmax(q k^T / sqrt(d)), the weights of `attend` without a mask, in float32."""
    q = q.astype(jnp.float32) * q.shape[-1] ** -0.5
    return jax.nn.softmax(jnp.einsum("bhnd,bhmd->bhnm", q, k.astype(jnp.float32)))


def collect_attention(
    module: nn.Module, params: Any, inputs: tuple, kind: AttentionKind
) -> dict[str, tuple[Array, Array]]:
    """Apply a module and return the queries and keys of each attention layer, by its path.

    They are (b, heads, n, d) and (b, heads, m, d). A program that does not collect them is the same
    as without `sow`. Layers keep no probabilities, because those of many pixels are large.
    """
    _, sown = module.apply({"params": params}, *inputs, mutable=[kind])
    is_sown = lambda node: isinstance(node, tuple)  # noqa: E731
    leaves = jax.tree.leaves_with_path(sown.get(kind, {}), is_leaf=is_sown)
    return {
        jax.tree_util.keystr(path[:-1], simple=True, separator="."): pair
        for path, (pair,) in leaves
    }


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
        out = multi_head_attention(
            pixels, pixels, c // head_dim, init=self.init_scheme, zero=True, sow=self.sow
        )
        return (x + out.reshape(x.shape)) / self.scale
