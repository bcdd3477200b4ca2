"""A text encoder and the U-Net that attends to its states, trained together on latents."""

import dataclasses
import itertools
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Num

from ddpm_jax.errors import check_rows, check_shape
from ddpm_jax.models import Model, Params
from ddpm_jax.models.attention import AttentionKind
from ddpm_jax.models.clip_text import ClipActivation, ClipText
from ddpm_jax.models.initializers import Init
from ddpm_jax.models.unet_conditional import ConditionalUNet, TextCondition

START_ID = 0
END_ID = 1
"""The tokens around a text. END_ID also pads."""
NUM_BYTES = 256
MIN_VOCABULARY = 2 + 2 * NUM_BYTES
"""Two special tokens, and each byte within and at the end of a word."""
MIN_LENGTH = 3
"""The tokens around a text, and one between them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextUNet(Model):
    """`ClipText` and `ConditionalUNet`, whose condition is the token ids (b, n) of captions.

    `image_size` and `channels` are those of the latents. `label_dropout` drops captions.
    """

    denoises_latents: ClassVar[bool] = True

    vocab_size: int = 1536
    """Largest number of tokens. They are learnt from the captions."""
    max_length: int = 24
    """Number of tokens of each caption, with the tokens around it."""
    text_width: int = 128
    text_layers: int = 2
    text_heads: int = 4
    text_activation: ClipActivation = "quick_gelu"
    """quick_gelu: x sigmoid(1.702 x). gelu: the exact one."""
    start_id: int = START_ID
    """Token before a text."""
    end_id: int = END_ID
    """Token after a text."""
    pad_id: int = END_ID
    """Token that fills the places after the end."""
    widths: tuple[int, ...] = (48, 96)
    """Channels of each level, finest first. Each further level halves the size."""
    attention: tuple[bool, ...] = (True, True)
    """Which levels have transformers, finest first. The middle always has one."""
    head_dim: int | None = 24
    """Channels per attention head; None for a single head."""
    heads: int | None = None
    """Attention heads of every level. If it is given, head_dim has no effect."""
    linear_projection: bool = False
    """Keep the transformers' outer layers as matrices, and not as 1x1 convolutions."""
    layers_per_level: int = 1
    """Residual blocks per level on the way down. The way up has one more per level."""
    groups: int = 16
    """Groups of the group norms."""
    init_scheme: Init = "ddpm"
    """ddpm: Glorot-uniform, and each residual branch starts at zero. torch: PyTorch's defaults."""

    def check(self) -> None:
        if any(self.condition_settings.values()) or self.learned_variance:
            raise ValueError(
                "A network for captions has neither classes nor a learned variance, nor another "
                f"condition: leave out {', '.join(self.condition_settings)} and learned_variance."
            )
        if self.vocab_size < MIN_VOCABULARY:
            raise ValueError(
                f"vocab_size must be at least {MIN_VOCABULARY}, two special tokens and "
                f"{2 * NUM_BYTES} for bytes, not {self.vocab_size}."
            )
        if self.max_length < MIN_LENGTH:
            raise ValueError(
                f"max_length must be at least {MIN_LENGTH}, one token between start and end, "
                f"not {self.max_length}."
            )
        for name in ("start_id", "end_id", "pad_id"):
            token = getattr(self, name)
            if not 0 <= token < self.vocab_size:
                raise ValueError(
                    f"{name} must be a token in [0, vocab_size), here [0, {self.vocab_size}), "
                    f"not {token}."
                )
        if len(self.attention) != len(self.widths):
            raise ValueError(
                f"attention names {len(self.attention)} levels, but widths has "
                f"{len(self.widths)}: give one value per level."
            )
        # Each raises ValueError for settings that contradict each other.
        _ = self.text_encoder, self.unet
        # The middle has the width of the last level, and always attends.
        attends = (*self.attention[:-1], True)
        for width in itertools.compress(self.widths, attends):
            if self.heads is None and width % (self.head_dim or width):
                raise ValueError(
                    f"Heads of {self.head_dim} channels do not divide {width} channels: "
                    "change head_dim or the width."
                )
            if self.heads is not None and (self.heads < 1 or width % self.heads):
                raise ValueError(
                    f"{self.heads} heads do not divide {width} channels: change heads or the width."
                )

    @property
    def condition_parts(self) -> tuple[str, ...]:
        return ("label",)

    @property
    def text_encoder(self) -> ClipText:
        """The text encoder, whose parameters are params["text_encoder"]."""
        return ClipText(
            vocab_size=self.vocab_size,
            max_length=self.max_length,
            width=self.text_width,
            hidden_width=4 * self.text_width,
            layers=self.text_layers,
            heads=self.text_heads,
            activation=self.text_activation,
            init_scheme="torch",
        )

    @property
    def unet(self) -> ConditionalUNet:
        """The network of the latents, whose parameters are params["unet"]."""
        return ConditionalUNet(
            sample_size=self.image_size,
            in_channels=self.channels,
            out_channels=self.channels,
            widths=self.widths,
            cross_attention=self.attention,
            heads=tuple(self.heads or width // (self.head_dim or width) for width in self.widths),
            transformer_layers=(1,) * len(self.widths),
            layers_per_level=self.layers_per_level,
            context_dim=self.text_width,
            linear_projection=self.linear_projection,
            groups=self.groups,
            init_scheme=self.init_scheme,
        )

    @property
    def _param_specs(self) -> Any:
        return {
            "text_encoder": self.text_encoder._param_specs,
            "unet": self.unet._param_specs,
        }

    def apply(
        self,
        params: Params,
        xt: Float[Array, "b h w c"],
        t: Num[Array, " b"],
        condition: Int[Array, "b n"] | None = None,
        *,
        dropout_keys: Key[Array, " b"] | None = None,
        dtype: Any = jnp.float32,
    ) -> Float[Array, "b h w c"]:
        """Compute the network's output for token ids in `dtype` and return it in float32.

        Without a condition, the caption is empty. There is no dropout within the network.
        """
        check_shape(xt.shape[:1], dropout_keys=dropout_keys)
        text = self._encode(params, xt, condition, dtype)
        return self.unet.apply(params["unet"], xt, t, text, dtype=dtype)

    def queries_and_keys(
        self,
        params: Params,
        xt: Float[Array, "b h w c"],
        t: Num[Array, " b"],
        condition: Int[Array, "b n"] | None = None,
        *,
        kind: AttentionKind = "cross_attention",
        dtype: Any = jnp.float32,
    ) -> dict[str, tuple[Array, Array]]:
        """The queries and keys of each attention layer of the U-Net (`collect_attention`)."""
        text = self._encode(params, xt, condition, dtype)
        return self.unet.queries_and_keys(params["unet"], xt, t, text, kind=kind, dtype=dtype)

    def _encode(self, params, xt, condition, dtype) -> TextCondition:
        """The condition of the U-Net, by token ids or else of empty captions."""
        check_rows(xt.shape[0], condition=condition)
        ids = self.empty_captions(xt.shape[0]) if condition is None else condition
        return TextCondition(self.text_encoder.apply(params["text_encoder"], ids, dtype=dtype))

    def empty_captions(self, n: int) -> Int[Array, "n length"]:
        """The token ids of n empty captions."""
        row = jnp.full(self.max_length, self.pad_id, jnp.int32)
        row = row.at[:2].set(jnp.array([self.start_id, self.end_id], jnp.int32))
        return jnp.broadcast_to(row, (n, self.max_length))

    def unconditional(self, n: int) -> Int[Array, "n length"] | None:
        """The token ids of n empty captions; None for a network without caption dropout."""
        return self.empty_captions(n) if self.label_dropout else None
