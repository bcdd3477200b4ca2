"""Maps of where each word of a prompt acts on its image, over all steps and over each third."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from ddpm_jax.devices import parallel
from ddpm_jax.diffusion.guidance import bind
from ddpm_jax.errors import check
from ddpm_jax.generation.attention_maps import attention_of, attention_sums, merge_maps
from ddpm_jax.generation.scheduler_grids import at_whole_timesteps, needs_whole_timesteps
from ddpm_jax.models.unet_conditional import TextCondition
from ddpm_jax.pretrained.stable_diffusion import StableDiffusion
from ddpm_jax.text_to_image.draw import Plan
from ddpm_jax.text_to_image.prompts import word_tokens

PERIODS = ("all steps", "early", "middle", "late")
THIRDS = 3


class WordMaps(NamedTuple):
    """The maps of the words of one image's prompt, in the size of the latents."""

    words: list[str]
    maps: Float[np.ndarray, "words periods h w"]
    """Over all steps and over each third of them, as in `PERIODS`."""


def check_word_maps(model: StableDiffusion, prompts: Sequence[str]) -> None:
    """Raise ValueError for a prompt without words, or if only the middle attends to the text."""
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


def word_maps(
    plan: Plan,
    indices: Int[np.ndarray, " b"],
    text: TextCondition,
    states: Float[Array, "steps b h w c"],
) -> list[WordMaps]:
    """The maps of the images at these indices; an `on_states` of `draw_images`.

    The map of a word is the mean of those of its tokens, wherever it occurs (DAAM). Indices beyond
    the last image fill the batch and have no maps.
    """
    maps = period_maps(plan, text, states)
    prompts = plan.request.prompts
    return [
        _of_words(word_tokens(plan.model, prompts[index // plan.request.num_images]), maps[:, i])
        for i, index in enumerate(indices)
        if index < plan.request.total
    ]


def period_maps(
    plan: Plan, text: TextCondition, states: Float[Array, "steps b h w c"]
) -> Float[np.ndarray, "periods b h w tokens"]:
    """The maps of all tokens over all steps, then over each third of them."""
    model = plan.model
    function = attention_of(model.unet, "cross_attention", model.dtype)
    attention = bind(Partial(parallel.per_shard(function), model.unet_params), text)
    if needs_whole_timesteps(plan.sampling.grid_kind):
        attention = at_whole_timesteps(attention)
    thirds = attention_sums(attention, states, plan.grid, parts=THIRDS)
    sums = jax.tree.map(lambda parts: jnp.concatenate([parts.sum(0, keepdims=True), parts]), thirds)
    return np.asarray(merge_maps(sums, states.shape[2:4]))


def _of_words(
    tokens: dict[str, list[int]], maps: Float[np.ndarray, "periods h w tokens"]
) -> WordMaps:
    return WordMaps(
        list(tokens), np.stack([maps[..., places].mean(-1) for places in tokens.values()])
    )
