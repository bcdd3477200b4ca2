"""From parameters to images: batches of samples, the same whatever the batch size or the devices."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from tqdm import tqdm

from ddpm_jax.data.pixels import to_uint8
from ddpm_jax.devices import parallel
from ddpm_jax.diffusion.guidance import Condition, bind, guide
from ddpm_jax.diffusion.prediction import Network
from ddpm_jax.generation.editing import Edit
from ddpm_jax.generation.recipe import Recipe, check_guidance
from ddpm_jax.generation.sampling import Sampling, check_sampling
from ddpm_jax.generation.walk import walk, walk_length
from ddpm_jax.models import NO_CLASS, Model, Params
from ddpm_jax.samplers import sample_keys


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
    """uint8 samples (1, num, h, w, c), or with `path` the states (stages + 1, num, h, w, c) to them.

    Sample i depends on (seed, i) alone, and with an `edit` on row i of its arrays, in turn. Its
    class is the i-th of `labels`, in turn, by default of all classes. The walk is split into at
    least `stages` equal parts; `on_stage(images)` is called after each. Raises ValueError
    as `choose_labels` does, and for guidance of a network that was not trained without labels.
    """
    sampling = sampling or recipe.sampling
    model = recipe.model
    classes = np.asarray(choose_labels(model, labels, edit), np.int32)
    check_sampling(recipe.objective, sampling)
    check_guidance(sampling.guidance_scale, model.label_dropout)
    guidance = None if np.all(classes == NO_CLASS) else sampling
    chunks = chunk_count(walk_length(recipe.objective, sampling, edit), stages)
    kept = evenly_spaced(chunks, stages + 1) if path else [chunks]
    batch_size = parallel.padded_batch_size(batch_size, num)
    params = parallel.replicate(params)
    same_noise = edit is not None and edit.fractions is not None
    batches = []
    for start in range(0, num, batch_size):
        wanted = min(batch_size, num - start)
        indices = jnp.arange(start, start + batch_size)
        keys = parallel.shard(sample_keys(seed, jnp.zeros_like(indices) if same_noise else indices))
        condition = parallel.shard(jnp.asarray(classes)[indices % len(classes)])
        network = guided_network(
            model, params, condition, guidance, parallel.per_shard(model.apply)
        )
        rows = None if edit is None else parallel.shard(edit.take(indices))
        states = walk(keys, recipe.objective, network, model.image_shape, sampling, chunks, rows)
        batches.append(_keep(states, kept, wanted, on_stage))
    return np.concatenate(batches, axis=1)


def generate_shown(
    recipe: Recipe,
    params: Params,
    *,
    num: int,
    sampling: Sampling | None = None,
    stages: int = 20,
    edit: Edit | None = None,
    progress: bool = True,
    **options: Any,
) -> np.ndarray:
    """Call `generate` with a progress bar."""
    sampling = sampling or recipe.sampling
    steps = walk_length(recipe.objective, sampling, edit)
    total = num * chunk_count(steps, min(stages, steps))
    with tqdm(
        total=total, unit="part", desc=f"{num} pictures, {steps} steps", disable=not progress
    ) as bar:
        options |= {"sampling": sampling, "stages": stages, "edit": edit, "on_stage": bar.update}
        return generate(recipe, params, num=num, **options)


def guided_network(
    model: Model,
    params: Params,
    labels: Condition,
    sampling: Sampling | None = None,
    apply: Callable | None = None,
) -> Network:
    """The network (xt, t) -> output with these labels (b,), guided if `sampling` says so.

    `labels` are ignored by a network without classes. `apply` replaces the model's own.
    """
    network = Partial(apply or model.apply, params)
    if model.num_classes is None:
        return bind(network, None)
    if sampling is None or not sampling.guided:
        return bind(network, labels)
    check_guidance(sampling.guidance_scale, model.label_dropout)
    return guide(
        network,
        labels,
        model.unconditional(len(labels)),
        sampling.guidance_scale,
        interval=sampling.guidance_interval,
        rescale=sampling.guidance_rescale,
    )


def choose_labels(
    model: Model, labels: Sequence[int] | None, edit: Edit | None = None
) -> Sequence[int]:
    """The given labels, by default all classes, or none for an edit; raises ValueError for invalid ones."""
    classes = range(model.num_classes or 0)
    none = [NO_CLASS] if model.label_dropout else []
    if not classes:
        if set(labels or ()) - {NO_CLASS}:
            raise ValueError("this net was trained without classes: leave the labels out")
        return [NO_CLASS]
    labels = labels or (classes if edit is None else none)
    if wrong := sorted(set(labels) - {*classes, *none}):
        raise ValueError(f"label {wrong[0]} is outside the classes 0..{classes[-1]}")
    if not labels:
        raise ValueError("this net needs to know the class of what it edits: give a label")
    if edit is not None and edit.fractions is not None and len(labels) > 1:
        raise ValueError(f"between two ends there is one class: give one label, not {len(labels)}")
    return labels


def chunk_count(steps: int, at_least: int) -> int:
    """The smallest divisor of `steps` that is no less than `at_least`, or `steps` itself."""
    return next(count for count in range(min(at_least, steps), steps + 1) if steps % count == 0)


def evenly_spaced(last: int, count: int) -> list[int]:
    """`count` whole numbers from 0 to `last`, evenly spread, both ends included."""
    return np.round(np.linspace(0, last, count)).astype(int).tolist()


def _keep(
    states: Iterator, kept: list[int], wanted: int, on_stage: Callable[[int], None]
) -> np.ndarray:
    images = []
    for i, state in enumerate(states):
        if i in kept:
            images += [to_uint8(np.asarray(state)[:wanted])] * kept.count(i)
        if i:
            jax.block_until_ready(
                state
            )  # a progress bar shows what is computed, not what is queued
            on_stage(wanted)
    return np.stack(images)
