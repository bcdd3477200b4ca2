"""Maps of where each word of a prompt acts on its image, over all steps and over each third."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, UInt8

from ddpm_jax.devices import parallel
from ddpm_jax.diffusion.guidance import bind
from ddpm_jax.errors import check
from ddpm_jax.generation.attention_maps import attention_of, attention_sums, merge_maps
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.generation.scheduler_grids import at_whole_timesteps, needs_whole_timesteps
from ddpm_jax.models.unet_conditional import TextCondition
from ddpm_jax.pretrained.stable_diffusion import StableDiffusion
from ddpm_jax.text_to_image.draw import (
    Batch,
    Plan,
    decode_batch,
    draw_batches,
    make_plan,
    to_images,
)
from ddpm_jax.text_to_image.prompts import word_tokens
from ddpm_jax.text_to_image.request import Request

PERIODS = ("all steps", "early", "middle", "late")
THIRDS = 3


class WordMaps(NamedTuple):
    """The maps of the words of one image's prompt, in the size of the latents."""

    words: list[str]
    maps: Float[np.ndarray, "words periods h w"]
    """Over all steps, then over each third of them (`PERIODS`) if there are at least three."""


def check_word_maps(model: StableDiffusion, prompts: Sequence[str]) -> None:
    """Raise ValueError for a prompt without words, and for a model that has no maps.

    That is one with target edm, or one of which only the middle attends to the text.
    """
    check(
        model.objective.target != "edm",
        "Attention maps do not scale the input of the network, as target edm needs: leave them "
        "out.",
    )
    for prompt in prompts:
        check(
            len(word_tokens(model, prompt)) > 0,
            f"The prompt {prompt!r} has no word, so there is no map to show: name something.",
        )
    check(
        any(model.unet.cross_attention),
        "Only the middle of this network attends to the text, so there is no map to show: "
        "leave out the attention maps.",
    )


def draw_with_maps(
    model: StableDiffusion,
    request: Request,
    sampling: Sampling | None = None,
    *,
    batch_size: int = 1,
    progress: bool = True,
) -> tuple[UInt8[np.ndarray, "n h w 3"], list[WordMaps]]:
    """Draw images as `draw_images` does, and the maps of each. Raise as `check_word_maps` does."""
    check_word_maps(model, request.prompts)
    plan = make_plan(model, request, sampling or model.sampling)
    pixels = []
    maps: list[WordMaps] = []
    for batch in draw_batches(plan, batch_size, progress, keep_states=True):
        pixels.append(decode_batch(plan, batch))
        maps += word_maps(plan, batch)
    return to_images(plan, np.concatenate(pixels)), maps


def word_maps(plan: Plan, batch: Batch) -> list[WordMaps]:
    """The maps of each image of a batch. Images that only fill the batch are left out.

    The batch must hold its states. The map of a word is the mean of those of its tokens, wherever
    it occurs (DAAM).
    """
    assert batch.states is not None
    maps = period_maps(plan, batch.text, batch.states)
    prompts = plan.request.prompts
    return [
        _of_words(word_tokens(plan.model, prompts[index // plan.request.num_images]), maps[:, i])
        for i, index in enumerate(batch.indices)
        if index < plan.request.total
    ]


def period_maps(
    plan: Plan, text: TextCondition, states: Float[Array, "steps b h w c"]
) -> Float[np.ndarray, "periods b h w tokens"]:
    """The maps of all tokens over all steps, then over each third of them if there are three."""
    model = plan.model
    function = attention_of(model.unet, "cross_attention", model.dtype)
    attention = bind(Partial(parallel.per_shard(function), model.unet_params), text)
    if needs_whole_timesteps(plan.sampling.grid_kind):
        attention = at_whole_timesteps(attention)
    parts = THIRDS if len(states) >= THIRDS else 1
    sums = attention_sums(attention, states, plan.grid, parts=parts)
    if parts > 1:
        sums = jax.tree.map(lambda x: jnp.concatenate([x.sum(0, keepdims=True), x]), sums)
    return np.asarray(merge_maps(sums, states.shape[2:4]))


def _of_words(
    tokens: dict[str, list[int]], maps: Float[np.ndarray, "periods h w tokens"]
) -> WordMaps:
    return WordMaps(
        list(tokens), np.stack([maps[..., places].mean(-1) for places in tokens.values()])
    )
