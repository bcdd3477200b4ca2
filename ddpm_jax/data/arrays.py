"""Images in NumPy's files: arrays of any number of channels, of floats or of integers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import numpy as np

from ddpm_jax import home
from ddpm_jax.data import Batch, ConditionKind, DataSource, ImageSet
from ddpm_jax.data.array_files import (
    Stored,
    check_conditions,
    check_finite,
    check_fits,
    check_image,
    load_array,
    open_stored,
)
from ddpm_jax.data.loading import load_or_stream
from ddpm_jax.data.values import ScaledValues, Scaling, scaled_values
from ddpm_jax.errors import check
from ddpm_jax.image_size import ImageSize, sides

GIVEN_AXES: dict[ConditionKind | None, int] = {"vector": 1, "image": 3}
"""The axes of each condition that comes with the images."""
BLOCK_BYTES = 2**24
"""The size of the blocks that statistics are computed in."""
DIGITS = 7
"""Significant digits of a computed mean or deviation: its last ones differ between computers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arrays(DataSource):
    """Arrays of real numbers: `images` (n, h, w, c), and `labels` (n,) of integers, if any.

    `classes` are the names of the labels. `conditions`, (n, k) or (n, h, w, c),
    are read for a condition.

    A folder may hold an .npy of each image (h, w, c), whose subfolders are the classes, as in a
    folder of image files. Images are not resized. A value that is not finite, or outside of a given
    range, makes an image corrupt.
    """

    takes_any_channels: ClassVar[bool] = True

    path: str
    """An .npz with images and labels, an .npy of images, or a folder of an .npy per image."""
    condition_path: str | None = None
    """An .npy of the conditions, in the order of the images; None for `conditions` of the .npz."""
    scaling: Scaling | None = None
    """range: the lowest value of each channel becomes -1, the highest 1. deviation: each channel
    gets mean 0 and deviation 1; this needs --sampling.no-clip-x0. None for range, except for uint8
    without statistics: 0 becomes -1, and 255 becomes 1."""
    statistics: tuple[float, ...] = ()
    """Low and high, or mean and deviation: a pair for all channels, or a pair for each. By default
    they are computed from the data."""

    def __post_init__(self):
        super().__post_init__()
        check(
            self.condition_path is None or self.condition in GIVEN_AXES,
            "data.condition_path is for data.condition vector or image: set it too.",
        )
        pairs = self.pairs
        check(
            len(self.statistics) % 2 == 0 and all(map(math.isfinite, self.statistics)),
            f"data.statistics must be pairs of numbers, not {self.statistics}.",
        )
        if self.is_bounded:
            wrong = [f"{low:g} {high:g}" for low, high in pairs if not low < high]
            check(not wrong, f"data.statistics must be pairs of low and high, not {wrong}.")
        else:
            wrong = [f"{mean:g} {deviation:g}" for mean, deviation in pairs if deviation <= 0]
            check(not wrong, f"data.statistics must be means and deviations above 0, not {wrong}.")

    @property
    def pairs(self) -> list[tuple[float, float]]:
        """The given statistics in pairs."""
        return list(zip(self.statistics[::2], self.statistics[1::2], strict=False))

    @property
    def is_bounded(self) -> bool:
        return self.scaling != "deviation"

    def describe(self) -> str:
        return f"arrays: {self.path}"

    def load(self, image_size: ImageSize, channels: int) -> ImageSet:
        stored = self._open()
        check_fits(stored, (*sides(image_size), channels))
        pairs = self.pairs
        if len(pairs) == 1:
            pairs = pairs * channels
        check(
            len(pairs) in (0, channels),
            f"data.statistics has {len(pairs)} pairs, but the images have {channels} channels: "
            "give one pair, or one for each channel.",
        )
        limits = np.transpose(pairs) if pairs and self.is_bounded else None

        def decode(i: int) -> np.ndarray:
            image, name = stored.read(i)
            check_image(image, name, stored, limits)
            if stored.conditions is not None:
                check_finite(stored.conditions[i], f"{name}, in its condition,")
            return image

        images = load_or_stream(
            stored.size,
            decode,
            stored.labels,
            math.prod(stored.shape) * stored.dtype.itemsize,
            self.describe(),
            self.max_corrupt_fraction,
            stored.classes,
            conditions=stored.conditions,
        )
        if stored.dtype == np.uint8 and self.scaling is None and not pairs:
            return images
        scaling = self.scaling or "range"
        pairs = pairs or computed_pairs(images, scaling, self.path)
        return ScaledImages(images, scaled_values(scaling, pairs, stored.dtype))

    def _open(self) -> Stored:
        """The arrays on disk, with the conditions that the settings ask for."""
        axes = GIVEN_AXES.get(self.condition)
        stored = open_stored(
            home.expand(self.path), axes is not None and self.condition_path is None
        )
        if axes is None:
            return stored._replace(conditions=None)
        name = self.condition_path or self.path
        if self.condition_path is not None:
            stored = stored._replace(conditions=load_array(home.expand(self.condition_path)))
        check_conditions(stored.conditions, name, stored.size, axes)
        return stored


class ScaledImages(NamedTuple):
    """An `ImageSet` of float32 inputs of a network, scaled from the values of other images."""

    stored: ImageSet
    values: ScaledValues

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
    def conditions(self) -> np.ndarray | None:
        return getattr(self.stored, "conditions", None)

    def __len__(self) -> int:
        return len(self.stored)

    def read(self, indices: np.ndarray) -> Batch:
        batch = self.stored.read(indices)
        return batch | {"image": self.values.to_network(batch["image"])}


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
    return _rounded(mean), _rounded(np.sqrt(variance))


def _rounded(numbers: np.ndarray) -> np.ndarray:
    return np.array([float(f"{number:.{DIGITS}g}") for number in numbers])


def _pixels(images: ImageSet) -> Iterator[np.ndarray]:
    """Yield the pixels of all images (n, c) in float64, in blocks of images."""
    first = images.read(np.arange(1))["image"]
    size = max(1, BLOCK_BYTES // first.nbytes)
    for start in range(0, len(images), size):
        block = images.read(np.arange(start, min(start + size, len(images))))["image"]
        yield block.reshape(-1, block.shape[-1]).astype(np.float64)
