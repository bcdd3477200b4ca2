"""Images in NumPy's files: arrays of any number of channels, of floats or of integers."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np

from ddpm_jax import home
from ddpm_jax.data import DataSource, ImageSet
from ddpm_jax.data.array_files import (
    Stored,
    check_finite,
    check_fits,
    check_given,
    check_image,
    load_array,
    open_stored,
)
from ddpm_jax.data.conditions import given_part
from ddpm_jax.data.loading import load_or_stream
from ddpm_jax.data.scaled_images import (
    ScaledImages,
    check_unit,
    computed_pairs,
)
from ddpm_jax.data.values import Levels, ScaledValues, Scaling, scaled_values, type_name
from ddpm_jax.errors import check
from ddpm_jax.image_size import ImageSize, sides


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
    they are computed from the data once, and a resumed run uses the saved ones."""

    def __post_init__(self):
        super().__post_init__()
        check(
            self.condition_path is None or given_part(self.condition) is not None,
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
        return self.load_as(image_size, channels, None)

    def load_as(self, image_size: ImageSize, channels: int, values: Levels | None) -> ImageSet:
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
        # Values of another type have a scale of their own, which `check_values` refuses.
        if isinstance(values, ScaledValues) and values.dtype == type_name(stored.dtype):
            check_unit(images, values)
            return ScaledImages(images, values)
        scaling = self.scaling or "range"
        pairs = pairs or computed_pairs(images, scaling, self.path)
        return ScaledImages(images, scaled_values(scaling, pairs, stored.dtype))

    def _open(self) -> Stored:
        """The arrays on disk, with the conditions that the settings ask for."""
        part = given_part(self.condition)
        with_conditions = part is not None and self.condition_path is None
        stored = open_stored(home.expand(self.path), with_conditions)
        if part is None:
            return stored._replace(conditions=None)
        name = self.condition_path or self.path
        if self.condition_path is not None:
            stored = stored._replace(conditions=load_array(home.expand(self.condition_path)))
        check_given(stored.conditions, name, stored.size, part.axes)
        return stored
