"""The transformer over the pixels of an image that attends to a text (Rombach et al. 2022).

Modules have the names of diffusers' Transformer2DModel.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.models.attention import AttentionKind, multi_head_attention
from ddpm_jax.models.initializers import Init
from ddpm_jax.models.layers import conv, dense
from ddpm_jax.models.norms import GroupNorm, LayerNorm

TRANSFORMER_NORM_EPS = 1e-6
"""Added to the variance in the group norm of a transformer, whatever the network's own is."""


class Attention(nn.Module):
    """Attention of x to the context. Queries, keys and values have no bias."""

    kind: AttentionKind
    heads: int
    init_scheme: Init

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], context: Float[Array, "b m e"]
    ) -> Float[Array, "b n c"]:
        return multi_head_attention(
            x,
            context,
            self.heads,
            init=self.init_scheme,
            use_bias=False,
            kind=self.kind,
            sow=self.sow,
        )


def geglu(x: Float[Array, "b n c2"]) -> Float[Array, "b n c"]:
    """value * gelu(gate) of the halves (value, gate) of x (Shazeer 2020), with the exact gelu."""
    value, gate = jnp.split(x, 2, -1)
    return value * nn.gelu(gate, approximate=False)


class TransformerBlock(nn.Module):
    """Self-attention, attention to the text, feed-forward; each of a layer norm, and added."""

    heads: int
    init_scheme: Init

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], text: Float[Array, "b m e"]
    ) -> Float[Array, "b n c"]:
        width = x.shape[-1]
        normed = LayerNorm(name="norm1")(x)
        to_itself = Attention("self_attention", self.heads, self.init_scheme, name="attn1")
        x = x + to_itself(normed, normed)
        normed = LayerNorm(name="norm2")(x)
        to_text = Attention("cross_attention", self.heads, self.init_scheme, name="attn2")
        x = x + to_text(normed, text)
        normed = LayerNorm(name="norm3")(x)
        hidden = geglu(dense(normed, 8 * width, "ff.net.0.proj", init=self.init_scheme))
        # (b, n, 4 * c) -> (b, n, c)
        return x + dense(hidden, width, "ff.net.2", init=self.init_scheme)


class Transformer2D(nn.Module):
    """Transformer blocks between two linear layers per pixel; plus the input.

    `linear_projection` only changes how the two layers keep their weights: as matrices, and not as
    1x1 convolutions. Raise ValueError if the heads do not divide the channels.
    """

    heads: int
    layers: int
    groups: int
    linear_projection: bool
    init_scheme: Init

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], text: Float[Array, "b m e"]
    ) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        if self.heads < 1 or c % self.heads:
            raise ValueError(
                f"{self.heads} heads do not divide {c} channels: change the heads or the width."
            )
        tokens = GroupNorm(self.groups, TRANSFORMER_NORM_EPS, name="norm")(x)
        tokens = self._project(tokens, "proj_in").reshape(b, h * w, c)
        for k in range(self.layers):
            name = f"transformer_blocks.{k}"
            tokens = TransformerBlock(self.heads, self.init_scheme, name=name)(tokens, text)
        return x + self._project(tokens.reshape(x.shape), "proj_out", zero=True)

    def _project(self, x, name, zero=False):
        if self.linear_projection:
            return dense(x, x.shape[-1], name, init=self.init_scheme, zero=zero)
        return conv(x, x.shape[-1], 1, name, init=self.init_scheme, zero=zero)
