"""From parameters to pictures: batches of samples, the same whatever the batch size or the devices."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Int
from tqdm import tqdm

from ddpm_jax import parallel
from ddpm_jax.diffusion import Sampling
from ddpm_jax.editing import Edit
from ddpm_jax.guidance import check_guidance, guide
from ddpm_jax.models import NO_CLASS, Model, Params
from ddpm_jax.pictures import spread_over, to_uint8
from ddpm_jax.prediction import Network
from ddpm_jax.recipe import Recipe
from ddpm_jax.samplers import sample_keys


def chunk_count(steps: int, at_least: int) -> int:
    """The smallest divisor of `steps` that is no less than `at_least`, or `steps` itself."""
    return next(count for count in range(min(at_least, steps), steps + 1) if steps % count == 0)


def generate(
    recipe: Recipe,
    params: Params,
    *,
    num: int,
    batch_size: int,
    seed: int,
    labels: Sequence[int] | None = None,
    sampling: Sampling | None = None,
    edit: Edit | None = None,
    stages: int = 1,
    path: bool = False,
    on_stage: Callable[[int], None] = lambda images: None,
) -> np.ndarray:
    """uint8 samples (1, num, h, w, c), or with `path` the states (stages + 1, num, h, w, c) from noise to samples.

    Sample i depends on (seed, i) alone, and with an `edit` on the edit's row i, in turn; its class, if any, is the
    i-th of `labels`, or of all classes, in turn. `stages` is the least number of equal parts the walk is seen in;
    `on_stage(images)` is called after each of them. Raises ValueError as `labels_of` does, and for guidance of a net
    that was not trained without labels too.
    """
    sampling = sampling or recipe.sampling
    classes = jnp.asarray(labels_of(recipe.model, labels, edit))
    check_guidance(sampling.guidance_scale, recipe.model.label_dropout)
    guidance = None if bool(jnp.all(classes == NO_CLASS)) else sampling
    chunks = chunk_count(recipe.objective.steps(sampling, edit), stages)
    kept = spread_over(chunks, stages + 1) if path else [chunks]
    batch_size = parallel.even_batch(batch_size, num)
    params = parallel.replicate(params)
    one_noise, batches = edit is not None and edit.shares is not None, []
    for start in range(0, num, batch_size):
        wanted = min(batch_size, num - start)
        indices = jnp.arange(start, start + batch_size)
        keys = parallel.shard(sample_keys(seed, jnp.zeros_like(indices) if one_noise else indices))
        label = parallel.shard(classes[indices % len(classes)])
        network = network_of(recipe.model, params, label, guidance, parallel.by_device(recipe.model.apply))
        part = None if edit is None else parallel.shard(edit.of(indices))
        states = recipe.objective.walk(keys, network, recipe.model.image_shape, sampling, chunks, part)
        batches.append(_keep(states, kept, wanted, on_stage))
    return np.concatenate(batches, axis=1)


def generate_shown(
    recipe: Recipe,
    params: Params,
    *,
    num: int,
    stages: int = 20,
    edit: Edit | None = None,
    progress: bool = True,
    **how: Any,
) -> np.ndarray:
    """What `generate` returns, with a progress bar of so many stages."""
    steps = recipe.objective.steps(recipe.sampling, edit)
    total = num * chunk_count(steps, min(stages, steps))
    with tqdm(total=total, unit="part", desc=f"{num} pictures, {steps} steps", disable=not progress) as bar:
        return generate(recipe, params, num=num, stages=stages, edit=edit, on_stage=bar.update, **how)


def labels_of(model: Model, labels: Sequence[int] | None, edit: Edit | None = None) -> Sequence[int]:
    """The labels, by default all classes, or for an edit none; raises ValueError for one that the net cannot take."""
    classes, unsaid = range(model.num_classes or 0), [NO_CLASS] if model.label_dropout else []
    if not classes:
        if set(labels or ()) - {NO_CLASS}:
            raise ValueError("this net was trained without classes: leave the labels out")
        return [NO_CLASS]
    labels = labels or (classes if edit is None else unsaid)
    if wrong := sorted(set(labels) - {*classes, *unsaid}):
        raise ValueError(f"label {wrong[0]} is outside the classes 0..{classes[-1]}")
    if not labels:
        raise ValueError("this net needs to know the class of what it edits: give a label")
    if edit is not None and edit.shares is not None and len(labels) > 1:
        raise ValueError(f"between two ends there is one class: give one label, not {len(labels)}")
    return labels


def network_of(
    model: Model,
    params: Params,
    labels: Int[Array, " b"],
    sampling: Sampling | None = None,
    apply: Callable | None = None,
) -> Network:
    """The network (xt, t) -> output, of these labels if it has classes, guided towards them if the sampling says so.

    `apply` takes the place of the model's own.
    """
    apply = apply or model.apply
    if model.num_classes is None:
        return Partial(apply, params)
    if sampling is None or not sampling.guided:
        return Partial(apply, params, labels=labels)
    return guide(
        Partial(apply, params),
        labels,
        sampling.guidance_scale,
        interval=sampling.guidance_interval,
        rescale=sampling.guidance_rescale,
    )


def _keep(states: Iterator, kept: list[int], wanted: int, on_stage: Callable[[int], None]) -> np.ndarray:
    pictures = []
    for i, state in enumerate(states):
        if i in kept:
            pictures += [to_uint8(np.asarray(state)[:wanted])] * kept.count(i)
        if i:
            jax.block_until_ready(state)  # so that a progress bar shows what is done, not what is asked for
            on_stage(wanted)
    return np.stack(pictures)
