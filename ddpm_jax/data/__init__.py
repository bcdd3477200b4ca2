"""Images to train on: one data source per file, and one deterministic stream of batches for all.

A data source is a frozen dataclass, a subclass of `DataSource`. Its name on the command line is the
name of its module. `load(image_size, channels)` returns uint8 images of one size as an `ImageSet`:
`InMemory`, or `OnDisk` above `IN_MEMORY_BYTES`. `batches` makes each global batch a pure function
of (seed, step).
Imports only `errors`.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from tqdm import tqdm

from ddpm_jax.errors import check

IN_MEMORY_BYTES = 2 * 1024**3
DECODING_THREADS = 16

Batch = dict[str, np.ndarray]


@runtime_checkable
class ImageSet(Protocol):
    """A finite set of uint8 images of one size.

    `read` returns `image` (n, h, w, c) and, for a set with labels, `label` (n,).
    """

    @property
    def labels(self) -> np.ndarray | None: ...

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> Batch: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSource:
    """Base class of all sources of images, with their common settings."""

    flip: bool = False
    """Flip each image horizontally with probability 1/2."""
    resize: Literal["crop", "squash"] = "crop"
    """How to make an image square: crop to its centre, or squash by changing the aspect ratio."""
    max_corrupt_fraction: float = 0.0
    """Largest fraction of corrupt images to skip, in [0, 1). A larger fraction is an error."""

    def __post_init__(self):
        check(
            0 <= self.max_corrupt_fraction < 1,
            f"data.max_corrupt_fraction must be in [0, 1), not {self.max_corrupt_fraction}.",
        )

    def describe(self) -> str:
        """One line that names the source. Needs no data on disk."""
        raise NotImplementedError

    def load(self, image_size: int, channels: int) -> ImageSet:
        """Load the images as (image_size, image_size, channels) uint8.

        Raise FileNotFoundError or ValueError if that is impossible; the message names the remedy.
        """
        raise NotImplementedError


class InMemory(NamedTuple):
    """Images held as one uint8 array (n, h, w, c), with int32 labels (n,) or None."""

    images: np.ndarray
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: np.ndarray) -> Batch:
        batch = {"image": self.images[indices]}
        return batch if self.labels is None else batch | {"label": self.labels[indices]}


@dataclasses.dataclass(frozen=True)
class OnDisk:
    """Images decoded on each read; `decode(i)` returns image i as uint8 (h, w, c)."""

    num_images: int
    decode: Callable[[int], np.ndarray]
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return self.num_images

    def read(self, indices: np.ndarray) -> Batch:
        batch = {"image": np.stack([self.decode(int(i)) for i in indices])}
        return batch if self.labels is None else batch | {"label": self.labels[indices]}


def check_labels(images: ImageSet, num_classes: int | None) -> None:
    """Raise ValueError unless every image has a label in 0..num_classes-1.

    A network without classes (`num_classes` None) takes any labels, or none.
    """
    if num_classes is None:
        return
    if images.labels is None:
        raise ValueError(
            f"The network is for {num_classes} classes, but this data has no labels: "
            "leave num_classes out."
        )
    lowest = images.labels.min()
    highest = images.labels.max()
    if lowest < 0 or highest >= num_classes:
        raise ValueError(
            f"The labels of this data go from {lowest} to {highest}, outside the network's "
            f"classes 0..{num_classes - 1}: set num_classes to {highest + 1}."
        )


def load_or_stream(
    num_images: int,
    decode: Callable[[int], np.ndarray],
    labels: np.ndarray | None,
    image_bytes: int,
    name: str,
    max_corrupt_fraction: float = 0.0,
) -> ImageSet:
    """Load all images into memory if they fit into `IN_MEMORY_BYTES`; else leave them on disk.

    An image is corrupt if `decode` raises ValueError for it. Print the error of each corrupt image
    to stderr and skip the image. Raise ValueError if the fraction of corrupt images is above
    `max_corrupt_fraction`. If that is 0, images on disk are not checked in advance: `read` raises
    at the first corrupt image.
    """
    on_disk = num_images * image_bytes > IN_MEMORY_BYTES
    if on_disk and not max_corrupt_fraction:
        return OnDisk(num_images, decode, labels)

    def try_decode(i: int) -> np.ndarray | ValueError | None:
        try:
            image = decode(i)
        except ValueError as error:
            return error
        return None if on_disk else image

    with ThreadPoolExecutor(DECODING_THREADS) as threads:
        results = threads.map(try_decode, range(num_images))
        bar = tqdm(results, f"Decoding {name}", num_images, unit="image", leave=False)
        decoded = list(bar)
    intact = _skip_corrupt(decoded, max_corrupt_fraction)
    labels = None if labels is None else labels[intact]
    if on_disk:
        return OnDisk(len(intact), lambda i: decode(intact[i]), labels)
    return InMemory(np.stack([decoded[i] for i in intact]), labels)


def _skip_corrupt(decoded: list, max_corrupt_fraction: float) -> list[int]:
    """The indices of the entries that are not errors.

    Print the errors. Raise ValueError if their fraction is above `max_corrupt_fraction`, or if all
    entries are errors.
    """
    errors = {i: result for i, result in enumerate(decoded) if isinstance(result, ValueError)}
    for error in errors.values():
        print(error, file=sys.stderr)
    summary = f"{len(errors):,} of {len(decoded):,} images cannot be decoded"
    if len(errors) > max_corrupt_fraction * len(decoded) or len(errors) == len(decoded):
        first = next(iter(errors.values()))
        raise ValueError(
            f"{summary}: replace or remove them, or raise --data.max-corrupt-fraction. "
            f"The first error: {first}"
        )
    if errors:
        print(f"{summary} and are skipped.", file=sys.stderr)
    return [i for i in range(len(decoded)) if i not in errors]
