"""The text encoder of CLIP (Radford et al. 2021): transformers' CLIPTextModel.

Modules have transformers' names, so that a parameter's path, joined by dots, is its name there.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddpm_jax.models import Network, Params
from ddpm_jax.models.attention import multi_head_attention
from ddpm_jax.models.initializers import Init
from ddpm_jax.models.layers import dense, embedding
from ddpm_jax.models.norms import LayerNorm

ClipActivation = Literal["quick_gelu", "gelu"]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": partial(nn.gelu, approximate=False),
}
PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj")
EMBEDDING_STD = 0.02


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipText(Network):
    """A causal transformer over tokens. The defaults are those of Stable Diffusion 1."""

    vocab_size: int = 49_408
    """Number of tokens."""
    max_length: int = 77
    """The largest number of tokens of a text."""
    width: int = 768
    hidden_width: int = 3072
    """Channels of the hidden layer of each feed-forward network."""
    layers: int = 12
    heads: int = 12
    activation: ClipActivation = "quick_gelu"
    """quick_gelu: x sigmoid(1.702 x), of OpenAI's networks. gelu: the exact one, of OpenCLIP's."""
    norm_eps: float = 1e-5
    """Added to the variance in the layer norms."""
    init_scheme: Init = "torch"
    """ddpm: Glorot-uniform, and zero biases. torch: PyTorch's defaults."""

    def __post_init__(self):
        """Raise ValueError if there is no layer, or the heads do not divide the width."""
        super().__post_init__()
        if self.heads < 1 or self.layers < 1:
            raise ValueError(
                f"layers and heads must be at least 1, not {self.layers} and {self.heads}."
            )
        if self.width % self.heads:
            raise ValueError(
                f"{self.heads} heads do not divide {self.width} channels: "
                "change the heads or the width."
            )

    def module(self) -> nn.Module:
        return ClipTextModule(self, name="clip_text")

    def example_inputs(self) -> tuple:
        return jnp.zeros((1, 1), jnp.int32), self.layers

    def check_skip(self, skip: int) -> None:
        """Raise ValueError if no layer is left, or for a negative number."""
        if not 0 <= skip < self.layers:
            raise ValueError(
                f"The text encoder has {self.layers} layers, so it can skip 0 to "
                f"{self.layers - 1} of them, not {skip}."
            )

    def apply(
        self,
        params: Params,
        ids: Int[Array, "b n"],
        *,
        skip: int = 0,
        dtype: Any = jnp.float32,
    ) -> Float[Array, "b n d"]:
        """The normed states after all but the last `skip` layers, computed in `dtype`, in float32.

        Raise ValueError for more tokens than `max_length`, or if no layer is left.
        """
        if ids.shape[1] > self.max_length:
            raise ValueError(
                f"The text encoder takes at most {self.max_length} tokens, not {ids.shape[1]}: "
                "cut the text."
            )
        self.check_skip(skip)
        output: Any = self.module().apply({"params": params}, ids, self.layers - skip, dtype)
        return output.astype(jnp.float32)


class ClipTextModule(nn.Module):
    """The Linen module of `ClipText`, up to a number of layers."""

    net: ClipText

    @nn.compact
    def __call__(
        self, ids: Int[Array, "b n"], layers: int, dtype: Any = jnp.float32
    ) -> Float[Array, "b n d"]:
        net = self.net
        n = ids.shape[1]

        def embed(indices, count, kind):
            name = f"text_model.embeddings.{kind}_embedding"
            return embedding(indices, count, net.width, name, EMBEDDING_STD)

        tokens = embed(ids, net.vocab_size, "token")  # (b, n, d)
        positions = embed(jnp.arange(n), net.max_length, "position")  # (n, d)
        x = (tokens + positions[None]).astype(dtype)
        for i in range(layers):
            x = ClipLayer(net, name=f"text_model.encoder.layers.{i}")(x)
        return LayerNorm(net.norm_eps, name="text_model.final_layer_norm")(x)


class ClipLayer(nn.Module):
    """Causal self-attention, then a feed-forward network; each of a layer norm, and added."""

    net: ClipText

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        net = self.net
        init = net.init_scheme
        n = x.shape[1]
        causal = jnp.tril(jnp.ones((n, n), bool))
        normed = LayerNorm(net.norm_eps, name="layer_norm1")(x)
        x = x + multi_head_attention(normed, normed, net.heads, PROJECTIONS, init=init, mask=causal)
        normed = LayerNorm(net.norm_eps, name="layer_norm2")(x)
        hidden = ACTIVATIONS[net.activation](dense(normed, net.hidden_width, "mlp.fc1", init=init))
        return x + dense(hidden, net.width, "mlp.fc2", init=init)
