"""Batches: every global batch is a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ddpm_jax.data import DECODING_THREADS, Batch, ImageSet
from ddpm_jax.data.pixels import to_floats


def steps_per_epoch(count: int, batch_size: int) -> int:
    """ceil(count / batch_size): batches are full, the stream runs on into the next permutation."""
    return -(-count // batch_size)


def batch_indices(seed: int, step: int, batch_size: int, count: int) -> np.ndarray:
    """Which images (batch_size,) make up the global batch of `step`: one permutation of `count` after another.

    NumPy promises that a RandomState seed gives the same stream in every version, which Generator does not.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, places = positions // count, positions % count
    indices = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        order = np.random.RandomState([seed, epoch]).permutation(count)
        indices[epochs == epoch] = order[places[epochs == epoch]]
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
    """The global batch of (seed, step), or these rows of it: `image` (b, h, w, c) float32 in [-1, 1], `label` (b,).

    Labels are there where the images have any; only the images of the rows are read.
    """
    batch = images.read(batch_indices(seed, step, batch_size, len(images))[rows])
    pixels = batch["image"]
    if flip:
        mirrored = np.random.RandomState([seed, step, 1]).random_sample(batch_size)[rows] < 0.5
        pixels = np.where(mirrored[:, None, None, None], pixels[:, :, ::-1], pixels)
    return batch | {"image": to_floats(pixels)}


def stream(make_batch: Callable[[int], Batch], start: int, stop: int) -> Iterator[Batch]:
    """`make_batch(step)` for start <= step < stop, made ahead of their use by worker threads, in order."""
    import grain

    options = grain.ReadOptions(num_threads=DECODING_THREADS, prefetch_buffer_size=DECODING_THREADS)
    return iter(grain.MapDataset.range(start, stop).map(make_batch).to_iter_dataset(options))
