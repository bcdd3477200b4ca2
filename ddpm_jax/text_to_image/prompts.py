"""Prompts as the condition of a network."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from ddpm_jax.errors import check
from ddpm_jax.models import Params
from ddpm_jax.models.clip_text import ClipText
from ddpm_jax.models.unet_conditional import TextCondition
from ddpm_jax.pretrained.stable_diffusion import StableDiffusion
from ddpm_jax.text_to_image import tokenizer as tokenizers


def tokenize(model: StableDiffusion, prompts: str | Sequence[str]) -> Int[np.ndarray, "b n"]:
    """The ids of prompts (`tokenizer.tokenize`), no longer than the text encoder takes."""
    return tokenizers.tokenize(_tokenizer_of(model), prompts)


def check_tokenizer(model: StableDiffusion) -> None:
    """Raise ValueError for files that are not those of a tokenizer, or ImportError."""
    _tokenizer_of(model)


def word_tokens(model: StableDiffusion, prompt: str) -> dict[str, list[int]]:
    """Where the tokens of each word of a prompt are among its ids (`tokenizer.word_tokens`)."""
    return tokenizers.word_tokens(_tokenizer_of(model), prompt)


def _tokenizer_of(model: StableDiffusion) -> tokenizers.Tokenizer:
    """The tokenizer, with no more ids than the text encoder takes."""
    tokenizer = _tokenizer(tuple(sorted(model.tokenizer_files.items())))
    return tokenizer._replace(length=min(tokenizer.length, model.text_encoder.max_length))


@functools.lru_cache(maxsize=4)
def _tokenizer(files: tuple[tuple[str, bytes], ...]) -> tokenizers.Tokenizer:
    return tokenizers.make_tokenizer(dict(files))


def encode_text(
    model: StableDiffusion, ids: Int[np.ndarray, "b n"], *, skip: int = 0
) -> TextCondition:
    """The condition of a network: the text encoder's states of each row of ids.

    `skip` leaves out the last layers (CLIP skip). Raise ValueError for ids that the text encoder
    does not know.
    """
    known = model.text_encoder.vocab_size
    highest = int(np.max(ids))
    check(
        highest < known,
        f"The tokenizer gives the id {highest}, but the text encoder has {known} embeddings: "
        "use the tokenizer that it was trained with.",
    )
    rows = [
        _encode(model.text_encoder, model.text_params, jnp.asarray(row)[None], skip, model.dtype)
        for row in ids
    ]
    return TextCondition(jnp.concatenate(rows))


@functools.partial(jax.jit, static_argnames=("text_encoder", "skip", "dtype"))
def _encode(text_encoder: ClipText, params: Params, ids: Array, skip: int, dtype: str) -> Any:
    return text_encoder.apply(params, ids, skip=skip, dtype=jnp.dtype(dtype))
