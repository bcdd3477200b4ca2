"""Images to train on: one source a file, one deterministic stream of batches for all.

A source is a frozen dataclass with `describe()` (one line, needs no data on disk) and
`load(image_size, channels)`, which returns images that are already uint8 and of one size: `InMemory`
or, above `IN_MEMORY_BYTES`, `OnDisk`. `batch_at` makes every global batch a pure function of (seed, step).
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
    """A finite set of uint8 images of one size; `read` gives `image` (n, h, w, c) and, if any, `label` (n,)."""

    @property
    def labels(self) -> np.ndarray | None: ...

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> Batch: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSource:
    """What every source of images can be asked."""

    flip: bool = False
    """Mirror each image left to right with probability 1/2."""
    resize: Literal["crop", "squash"] = "crop"
    """How an image of another shape is fitted: cut the middle square out, or change the aspect ratio."""
    max_corrupt_fraction: float = 0.0
    """Share of images that may be damaged, in [0, 1): named and left out; with more of them nothing starts."""

    def __post_init__(self):
        check(
            0 <= self.max_corrupt_fraction < 1,
            f"data.max_corrupt_fraction must be in [0, 1), not {self.max_corrupt_fraction}",
        )

    def describe(self) -> str:
        """One line that says where the images come from."""
        raise NotImplementedError

    def load(self, image_size: int, channels: int) -> ImageSet:
        """The images as (size, size, channels) uint8; raises FileNotFoundError or ValueError with the remedy."""
        raise NotImplementedError


class InMemory(NamedTuple):
    """Images decoded once and held as one uint8 array (n, h, w, c), with int32 labels (n,) or None."""

    images: np.ndarray
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: np.ndarray) -> Batch:
        batch = {"image": self.images[indices]}
        return batch if self.labels is None else batch | {"label": self.labels[indices]}


@dataclasses.dataclass(frozen=True)
class OnDisk:
    """Images decoded when they are read: `decode(i)` gives one uint8 (h, w, c) image."""

    count: int
    decode: Callable[[int], np.ndarray]
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return self.count

    def read(self, indices: np.ndarray) -> Batch:
        batch = {"image": np.stack([self.decode(int(i)) for i in indices])}
        return batch if self.labels is None else batch | {"label": self.labels[indices]}


def check_labels(images: ImageSet, num_classes: int | None) -> None:
    """Raises ValueError unless every image has a label in 0..num_classes-1, for a net that takes any."""
    if num_classes is None:
        return
    if images.labels is None:
        raise ValueError(
            f"the net is for {num_classes} classes, but this data has no labels: leave num_classes out"
        )
    lowest, highest = images.labels.min(), images.labels.max()
    if lowest < 0 or highest >= num_classes:
        raise ValueError(
            f"labels of this data go from {lowest} to {highest}, outside the net's classes 0..{num_classes - 1}: "
            f"set num_classes to {highest + 1}"
        )


def load_or_stream(
    count: int,
    decode: Callable[[int], np.ndarray],
    labels: np.ndarray | None,
    image_bytes: int,
    name: str,
    max_corrupt_fraction: float = 0.0,
) -> ImageSet:
    """All images in memory if they take at most `IN_MEMORY_BYTES`, else left on disk and decoded when read.

    Images for which `decode` raises ValueError are named on stderr and left out; raises ValueError where they are more
    than the share `max_corrupt_fraction`. On disk with a `max_corrupt_fraction` of 0, the first such image ends the run when it is read.
    """
    on_disk = count * image_bytes > IN_MEMORY_BYTES
    if on_disk and not max_corrupt_fraction:
        return OnDisk(count, decode, labels)

    def attempt(i: int) -> np.ndarray | ValueError | None:
        try:
            image = decode(i)
        except ValueError as error:
            return error
        return None if on_disk else image

    with ThreadPoolExecutor(DECODING_THREADS) as threads:
        decoded = list(
            tqdm(
                threads.map(attempt, range(count)),
                f"decoding {name}",
                count,
                unit="image",
                leave=False,
            )
        )
    sound = _sound(decoded, max_corrupt_fraction)
    labels = None if labels is None else labels[sound]
    if on_disk:
        return OnDisk(len(sound), lambda i: decode(sound[i]), labels)
    return InMemory(np.stack([decoded[i] for i in sound]), labels)


def _sound(decoded: list, max_corrupt_fraction: float) -> list[int]:
    """Where there is no error; names the errors, and raises ValueError where they are too many."""
    bad = {i: error for i, error in enumerate(decoded) if isinstance(error, ValueError)}
    for error in bad.values():
        print(error, file=sys.stderr)
    share = f"{len(bad):,} of {len(decoded):,} images cannot be used"
    if len(bad) > max_corrupt_fraction * len(decoded) or len(bad) == len(decoded):
        raise ValueError(
            f"{share}: {next(iter(bad.values()))}, or let more of them be left out by --data.max-corrupt-fraction"
        )
    if bad:
        print(f"{share} and are left out", file=sys.stderr)
    return [i for i in range(len(decoded)) if i not in bad]
