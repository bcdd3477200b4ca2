"""Decode a set of images into memory, or leave a large one on disk; skip corrupt images."""

import dataclasses
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ddpm_jax.data import Batch, ImageSet
from ddpm_jax.data.captions import Captions
from ddpm_jax.data.values import LEVELS, Levels

IN_MEMORY_BYTES = 2 * 1024**3
DECODING_THREADS = 16


@dataclasses.dataclass(frozen=True)
class Rows:
    """Chosen rows of an array. The array stays where it is, such as in a file on disk."""

    array: np.ndarray
    chosen: np.ndarray

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        return self.array[self.chosen[indices]]

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self), *self.array.shape[1:]


class InMemory(NamedTuple):
    """Images held as one array (n, h, w, c). Labels are int32 (n,), or None."""

    images: Any
    """An array, or `Rows` of one."""
    labels: np.ndarray | None = None
    classes: tuple[str, ...] | None = None
    captions: tuple[str, ...] | None = None
    conditions: np.ndarray | Rows | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def values(self) -> Levels:
        return LEVELS

    def read(self, indices: np.ndarray) -> Batch:
        batch = {"image": self.images[indices]}
        return batch if self.labels is None else batch | {"label": self.labels[indices]}


@dataclasses.dataclass(frozen=True)
class OnDisk:
    """Images decoded on each read; `decode(i)` returns image i as (h, w, c)."""

    num_images: int
    decode: Callable[[int], np.ndarray]
    labels: np.ndarray | None = None
    classes: tuple[str, ...] | None = None
    captions: tuple[str, ...] | None = None
    conditions: np.ndarray | Rows | None = None

    def __len__(self) -> int:
        return self.num_images

    @property
    def values(self) -> Levels:
        return LEVELS

    def read(self, indices: np.ndarray) -> Batch:
        batch = {"image": np.stack([self.decode(int(i)) for i in indices])}
        return batch if self.labels is None else batch | {"label": self.labels[indices]}


def load_or_stream(
    num_images: int,
    decode: Callable[[int], np.ndarray],
    labels: np.ndarray | None,
    image_bytes: int,
    name: str,
    max_corrupt_fraction: float = 0.0,
    classes: tuple[str, ...] | None = None,
    captions: Captions | None = None,
    conditions: np.ndarray | None = None,
) -> ImageSet:
    """Load all images into memory if they fit into `IN_MEMORY_BYTES`; else leave them on disk.

    `classes` holds the names of the labels, if they have any. `decode` refuses an image without a
    caption if there are captions. `conditions` (n, ...) come with the images, if there are any.

    An image is corrupt if `decode` raises ValueError for it. Print the error of each corrupt image
    to stderr and skip the image. Raise ValueError if the fraction of corrupt images is above
    `max_corrupt_fraction`. If that is 0, images on disk are not checked in advance: `read` raises
    at the first corrupt image.
    """
    on_disk = num_images * image_bytes > IN_MEMORY_BYTES
    if on_disk and not max_corrupt_fraction:
        return OnDisk(num_images, decode, labels, classes, _texts(captions), conditions)

    def try_decode(i: int) -> np.ndarray | ValueError | None:
        try:
            image = decode(i)
        except ValueError as error:
            return error
        return None if on_disk else image

    with ThreadPoolExecutor(DECODING_THREADS) as threads:
        results = threads.map(try_decode, range(num_images))
        bar = tqdm(results, f"Decoding {name}", num_images, unit="image", leave=False)
        pixels = np.empty(0, np.uint8)
        errors: dict[int, ValueError] = {}
        for i, result in enumerate(bar):
            if isinstance(result, ValueError):
                errors[i] = result
            elif result is not None:
                # Written in place, without gaps, so that memory never holds the images twice.
                if not pixels.size:
                    pixels = np.empty((num_images, *result.shape), result.dtype)
                pixels[i - len(errors)] = result
    intact = _skip_corrupt(errors, num_images, max_corrupt_fraction)
    labels = None if labels is None else labels[intact]
    texts = None if captions is None else _texts([captions[i] for i in intact])
    kept = None if conditions is None else Rows(conditions, np.array(intact))
    others = (labels, classes, texts, kept)
    if on_disk:
        return OnDisk(len(intact), lambda i: decode(intact[i]), *others)
    return InMemory(pixels[: len(intact)], *others)


def _texts(captions: Captions | None) -> tuple[str, ...] | None:
    """The captions as texts; empty for an image that `decode` refuses."""
    return None if captions is None else tuple(caption or "" for caption in captions)


def _skip_corrupt(
    errors: dict[int, ValueError], num_images: int, max_corrupt_fraction: float
) -> list[int]:
    """The indices of the images without an error.

    Print the errors. Raise ValueError if their fraction is above `max_corrupt_fraction`, or if all
    images have one.
    """
    for error in errors.values():
        print(error, file=sys.stderr)
    summary = f"{len(errors):,} of {num_images:,} images cannot be used"
    all_corrupt = len(errors) == num_images
    if all_corrupt or len(errors) > max_corrupt_fraction * num_images:
        # No fraction allows a set without images.
        other = "" if all_corrupt else ", or raise --data.max-corrupt-fraction"
        first = next(iter(errors.values()))
        raise ValueError(f"{summary}: replace or remove them{other}. The first error: {first}")
    if errors:
        print(f"{summary} and are skipped.", file=sys.stderr)
    return [i for i in range(num_images) if i not in errors]
