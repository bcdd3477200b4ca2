"""Draw batches of samples. Batch size and devices change a sample only by rounding."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
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
from ddpm_jax.errors import check_at_least, to_integer
from ddpm_jax.generation.conditions import Conditions, condition_at
from ddpm_jax.generation.editing import Edit
from ddpm_jax.generation.model_spec import ModelSpec, check_condition_noise, check_guidance
from ddpm_jax.generation.sampling import Sampling, check_sampling
from ddpm_jax.generation.walk import walk, walk_length
from ddpm_jax.models import NO_CLASS, Model, Params
from ddpm_jax.models.conditions import add_condition_noise
from ddpm_jax.samplers import sample_keys


def generate(
    spec: ModelSpec,
    params: Params,
    *,
    num_images: int,
    batch_size: int,
    seed: int,
    labels: Sequence[int] | np.ndarray | None = None,
    conditions: Conditions | None = None,
    sampling: Sampling | None = None,
    edit: Edit | None = None,
    min_chunks: int = 1,
    trajectory: bool = False,
    on_steps: Callable[[int], None] = lambda steps: None,
    to_values: Callable[[np.ndarray], np.ndarray] = to_uint8,
) -> np.ndarray:
    """Draw uint8 samples (1, n, h, w, c), or with `trajectory` states (min_chunks + 1, n, h, w, c).

    `to_values` converts outputs of the network to the unit of the data; by default to uint8.

    Sample i depends on (seed, i), on the i-th of `labels` and on row i of the arrays of
    `conditions` (`read_conditions`) and `edit`. Labels and rows repeat cyclically. The default
    labels are all classes; the default condition is none, if the network was trained with that.
    Each batch runs in at least `min_chunks` chunks of equal length. After each chunk `on_steps` is
    called with its number of steps. The states of a trajectory are spread evenly over the steps,
    from the initial state to the sample.
    Raise ValueError for invalid labels (`choose_labels`), for sampling settings that do not fit the
    objective, for guidance of a network that was trained without label dropout, for a number of
    images, batch size or chunks below 1, and for a seed outside [0, 2**32).
    """
    check_at_least(1, min_chunks=min_chunks)
    sampling = sampling or spec.sampling
    model = spec.model
    classes = np.asarray(choose_labels(model, labels, edit), np.int32)
    check_sampling(spec.objective, sampling)
    check_guidance(sampling.guidance_scale, model.label_dropout)
    check_condition_noise(model, sampling)
    is_conditional = conditions is not None or np.any(classes != NO_CLASS)
    guidance = sampling if is_conditional else None
    steps = walk_length(spec.objective, sampling, edit)
    chunks = chunk_count(steps, min_chunks)
    saved = evenly_spaced(chunks, min_chunks + 1) if trajectory else [chunks]
    on_chunk = partial(on_steps, steps // chunks)
    batch_size = parallel.padded_batch_size(batch_size, num_images)
    params = parallel.replicate(params)
    same_noise = edit is not None and edit.fractions is not None
    batches = []
    for start in range(0, num_images, batch_size):
        indices = jnp.arange(start, start + batch_size, dtype=jnp.int32)
        key_indices = jnp.zeros_like(indices) if same_noise else indices
        keys = parallel.shard(sample_keys(seed, key_indices))
        condition = condition_at(model, classes, conditions, indices)
        if sampling.condition_noise:
            level = jnp.full(batch_size, sampling.condition_noise, jnp.float32)
            condition = add_condition_noise(sample_keys(seed, key_indices), condition, level)
        condition = parallel.shard(condition)
        apply = parallel.per_shard(model.apply)
        network = guided_network(model, params, condition, guidance, apply)
        rows = None if edit is None else parallel.shard(edit.take(indices))
        states = walk(keys, spec.objective, network, model.image_shape, sampling, chunks, rows)
        size = min(batch_size, num_images - start)
        batches.append(_collect_images(states, saved, size, on_chunk, to_values))
    return np.concatenate(batches, axis=1)


def generate_shown(
    spec: ModelSpec,
    params: Params,
    *,
    num_images: int,
    batch_size: int,
    sampling: Sampling | None = None,
    edit: Edit | None = None,
    min_chunks: int = 20,
    progress: bool = True,
    **options: Any,
) -> np.ndarray:
    """Call `generate` with a progress bar of the denoising steps of all batches."""
    sampling = sampling or spec.sampling
    steps = walk_length(spec.objective, sampling, edit)
    num_batches = -(-num_images // parallel.padded_batch_size(batch_size, num_images))
    title = f"{num_images} images, {steps} steps"
    with tqdm(total=num_batches * steps, desc=title, disable=not progress) as bar:
        return generate(
            spec,
            params,
            num_images=num_images,
            batch_size=batch_size,
            sampling=sampling,
            edit=edit,
            min_chunks=min_chunks,
            on_steps=bar.update,
            **options,
        )


def guided_network(
    model: Model,
    params: Params,
    condition: Condition,
    sampling: Sampling | None = None,
    apply: Callable | None = None,
) -> Network:
    """The network (xt, t) -> output with this condition, guided as `sampling` sets it.

    A network that takes none ignores it. `apply` replaces the model's own. Raise ValueError
    for guidance of a network that was trained without label dropout.
    """
    network = Partial(apply or model.apply, params)
    if not model.takes_condition:
        return bind(network, None)
    if sampling is None or not sampling.guided:
        return bind(network, condition)
    check_guidance(sampling.guidance_scale, model.label_dropout)
    return guide(
        network,
        condition,
        model.unconditional(len(jax.tree.leaves(condition)[0])),
        sampling.guidance_scale,
        interval=sampling.guidance_interval,
        rescale=sampling.guidance_rescale,
    )


def choose_labels(
    model: Model, labels: Sequence[int] | np.ndarray | None, edit: Edit | None = None
) -> Sequence[int]:
    """The given labels; by default all classes, or for an edit NO_CLASS if the network takes it.

    Raise ValueError for labels that the network does not have, for an edit without the label that
    the network needs, and for an interpolation with more than one label.
    """
    classes = range(model.num_classes or 0)
    no_class = [NO_CLASS] if model.label_dropout else []
    given = [to_integer("A label", label) for label in ([] if labels is None else labels)]
    if not classes:
        if set(given) - {NO_CLASS}:
            raise ValueError("This network was trained without classes: leave the labels out.")
        return [NO_CLASS]
    default = classes if edit is None else no_class
    chosen = given or [*default]
    unknown = sorted(set(chosen) - {*classes, *no_class})
    if unknown:
        valid = f"0..{classes[-1]}"
        raise ValueError(f"Label {unknown[0]} is outside the classes {valid}: choose one of them.")
    if not chosen:
        raise ValueError("This network needs the class of the images it edits: give a label.")
    if edit is not None and edit.fractions is not None and len(chosen) > 1:
        raise ValueError(f"An interpolation has one class: give one label, not {len(chosen)}.")
    return chosen


def chunk_count(steps: int, minimum: int) -> int:
    """The smallest divisor of `steps` that is at least `minimum`, or `steps` if there is none."""
    candidates = range(min(minimum, steps), steps + 1)
    return next(count for count in candidates if steps % count == 0)


def evenly_spaced(last: int, n: int) -> list[int]:
    """`n` whole numbers spread evenly over 0..last, including both ends."""
    return np.round(np.linspace(0, last, n)).astype(int).tolist()


def _collect_images(
    states: Iterable,
    saved: list[int],
    size: int,
    on_chunk: Callable[[], None],
    to_values: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """The values of the first `size` images of the states at the indices `saved`.

    They are (k, size, h, w, c). An index may occur more than once.
    """
    images = []
    for i, state in enumerate(states):
        if i in saved:
            images += [to_values(np.asarray(state)[:size])] * saved.count(i)
        if i > 0:
            # Block, so that a progress bar counts computed steps, not queued ones.
            jax.block_until_ready(state)
            on_chunk()
    return np.stack(images)
