"""Batches: every global batch is a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ddpm_jax.data import Batch, ImageSet
from ddpm_jax.data.loading import DECODING_THREADS
from ddpm_jax.data.pixels import to_floats
from ddpm_jax.errors import check_at_least, check_seed, check_whole

IMAGES = {"image", "condition_image"}
"""The arrays of a batch that are images."""


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """ceil(num_images / batch_size): the last batch of an epoch is filled from the next epoch."""
    return -(-num_images // batch_size)


def batch_indices(seed: int, step: int, batch_size: int, num_images: int) -> np.ndarray:
    """The indices (batch_size,) of the images in the global batch of `step`.

    Each epoch is a new permutation of 0..num_images-1, drawn from (seed, epoch). Raise ValueError
    for a seed outside [0, 2**32), a negative step, and no images or an empty batch.
    """
    check_seed(seed)
    check_whole(step=step, batch_size=batch_size, num_images=num_images)
    check_at_least(0, step=step)
    check_at_least(1, batch_size=batch_size, num_images=num_images)
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = positions // num_images
    offsets = positions % num_images
    indices = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        # NumPy fixes the stream of a seeded RandomState for all versions; a Generator's may change.
        order = np.random.RandomState([seed, epoch]).permutation(num_images)
        indices[epochs == epoch] = order[offsets[epochs == epoch]]
    return indices


def batch_at(
    images: ImageSet,
    seed: int,
    step: int,
    batch_size: int,
    *,
    rows: np.ndarray | slice = slice(None),
    flip: bool = False,
) -> Batch:
    """The global batch of (seed, step): `image` (b, h, w, c) float32 and `label` (b,).

    Images are in [-1, 1], unless data are scaled by their deviation. `rows` selects a part of the
    batch; only the images of these rows are read. There is no `label` if the images have none, and
    a condition only if they have one. `flip` flips each image, and a condition that is an image,
    horizontally with probability 1/2.
    """
    batch = images.read(batch_indices(seed, step, batch_size, len(images))[rows])
    if flip:
        mirrored = np.random.RandomState([seed, step, 1]).random_sample(batch_size)[rows] < 0.5
        for name in IMAGES & set(batch):
            pixels = batch[name]
            flipped = np.where(mirrored[:, None, None, None], pixels[:, :, ::-1], pixels)
            batch = batch | {name: flipped}
    return batch | {"image": to_floats(batch["image"])}


def stream(make_batch: Callable[[int], Batch], start: int, stop: int) -> Iterator[Batch]:
    """Yield `make_batch(step)` for start <= step < stop, in order.

    Worker threads prepare batches ahead.
    """
    import grain

    options = grain.ReadOptions(num_threads=DECODING_THREADS, prefetch_buffer_size=DECODING_THREADS)
    return iter(grain.MapDataset.range(start, stop).map(make_batch).to_iter_dataset(options))
