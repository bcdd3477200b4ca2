"""Images that wrap others: arrays, scaled for a network by statistics of their channels."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from ddpm_jax.data import Batch, ImageSet
from ddpm_jax.data.values import LEVELS, Levels, ScaledValues, Scaling
from ddpm_jax.errors import check

BLOCK_BYTES = 2**24
"""The size of the blocks that statistics are computed in."""
DIGITS = 7
"""Significant digits of a computed deviation: its last ones differ between computers. A mean is
rounded to the same place."""
FIRST_IMAGES = 64
"""The number of images whose levels are looked at."""
FEW_LEVELS = 64
"""The span of 8-bit levels below which they may be classes, or other small numbers."""
FAR = 4.0
"""Mean |x| above which images or conditions are in another unit than those of training, whose mean
|x| is at most 1."""


@dataclasses.dataclass(frozen=True)
class WrappedImages:
    """Base class of an `ImageSet` whose batches are those of another one, changed by `read`."""

    stored: ImageSet

    @property
    def labels(self) -> np.ndarray | None:
        return self.stored.labels

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self.stored.classes

    @property
    def captions(self) -> tuple[str, ...] | None:
        return self.stored.captions

    @property
    def conditions(self) -> Any:
        """The conditions that came with the images, in their own unit; None without any."""
        return getattr(self.stored, "conditions", None)

    @property
    def values(self) -> Levels:
        return self.stored.values

    def __len__(self) -> int:
        return len(self.stored)

    def read(self, indices: np.ndarray) -> Batch:
        return self.stored.read(indices)


@dataclasses.dataclass(frozen=True)
class ScaledImages(WrappedImages):
    """An `ImageSet` of float32 inputs of a network, scaled from the values of other images."""

    scale: ScaledValues

    @property
    def values(self) -> ScaledValues:
        return self.scale

    def read(self, indices: np.ndarray) -> Batch:
        batch = self.stored.read(indices)
        return batch | {"image": self.values.to_network(batch["image"])}


def check_unit(images: ImageSet, values: ScaledValues, name: str = "values") -> None:
    """Raise ValueError if the first images are far outside of the scale of a trained network.

    Messages call them the `name` of the data. Values that are not finite are not judged.
    """
    first = next(_blocks(images))
    distance = float(np.abs(values.to_network(first)).mean())
    check(
        not distance > FAR,
        f"The {name} of this data are not in the unit of those of the trained network "
        f"({values.describe()}): they are {distance:.3g} spreads from the centre on average. "
        "Restore them, or choose other data.",
    )


def computed_pairs(
    images: ImageSet,
    scaling: Scaling,
    name: str,
    channel: str = "Channel",
    remedy: str = "leave it out, or give --data.statistics",
) -> list[tuple[float, float]]:
    """Low and high, or mean and deviation, of each channel.

    Raise ValueError for values that are not finite, and for a constant channel, which the message
    calls `channel` and for which it has the `remedy`.
    """
    if scaling == "range":
        blocks = [(block.min(0), block.max(0)) for block in _pixels(images)]
        lows, highs = zip(*blocks, strict=True)
        first, second = np.min(lows, 0), np.max(highs, 0)
        is_constant = first == second
    else:
        first, second = _moments(images)
        is_constant = second <= 1e-9 * np.abs(first)
    check(
        bool(np.isfinite(first).all() and np.isfinite(second).all()),
        f"{name} has values that are not finite: replace them, or remove their rows.",
    )
    check(
        not is_constant.any(),
        f"{channel} {np.argmax(is_constant)} of {name} has the same value in all images: {remedy}.",
    )
    return [(float(a), float(b)) for a, b in zip(first, second, strict=True)]


def _moments(images: ImageSet) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the deviation (c,) of each channel."""
    blocks = [(len(block), block.mean(0), block.var(0)) for block in _pixels(images)]
    counts, means, variances = (np.array(each) for each in zip(*blocks, strict=True))
    mean = np.average(means, 0, counts)
    # Law of total variance: the mean variance within the blocks, plus the variance between them.
    variance = np.average(variances + (means - mean) ** 2, 0, counts)
    deviation = np.sqrt(variance)
    return _rounded(mean, deviation), _rounded(deviation, deviation)


def _rounded(numbers: np.ndarray, deviations: np.ndarray) -> np.ndarray:
    """Round each number to the last of `DIGITS` significant digits of its deviation."""
    known = np.where((deviations > 0) & np.isfinite(deviations), deviations, 1)
    places = DIGITS - 1 - np.floor(np.log10(known)).astype(int)
    return np.array([round(float(a), int(n)) for a, n in zip(numbers, places, strict=True)])


def _pixels(images: ImageSet) -> Iterator[np.ndarray]:
    """Yield the pixels of all images (n, c) in float64, in blocks of images."""
    for block in _blocks(images):
        yield block.reshape(-1, block.shape[-1]).astype(np.float64)


def _blocks(images: ImageSet) -> Iterator[np.ndarray]:
    """Yield all images (n, ..., c) in order, in blocks."""
    first = images.read(np.arange(1))["image"]
    size = max(1, BLOCK_BYTES // first.nbytes)
    for start in range(0, len(images), size):
        yield images.read(np.arange(start, min(start + size, len(images))))["image"]


def warn_of_few_levels(images: ImageSet, name: str, remedy: str) -> None:
    """Print to stderr, with the `remedy`, if 8-bit images use a small part of their levels.

    Only the first images are read.
    """
    first = images.read(np.arange(min(len(images), FIRST_IMAGES)))["image"]
    if first.dtype != np.uint8:
        return
    low, high = int(first.min()), int(first.max())
    if high - low < FEW_LEVELS:
        seen_low, seen_high = LEVELS.to_network(np.array([low, high], np.uint8))
        print(
            f"The first images of {name} have levels from {low} to {high} of 0 to 255, which the "
            f"network sees as {seen_low:.3g} to {seen_high:.3g}: unless that is meant, {remedy}.",
            file=sys.stderr,
        )
