"""Conditions of images: vectors of numbers, and images to concatenate.

The data gives a condition for each image, or it is computed from the image. Vectors are
standardised, images are scaled as images are. Each checkpoint saves the scale.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ddpm_jax.data import Batch, ConditionKind, DataSource, ImageSet
from ddpm_jax.data.condition_images import enlarge, grey_copy, reduced_copy
from ddpm_jax.data.loading import InMemory, Rows
from ddpm_jax.data.pixels import to_floats
from ddpm_jax.data.scaled_images import (
    WrappedImages,
    check_unit,
    computed_pairs,
    warn_of_few_levels,
)
from ddpm_jax.data.values import LEVELS, Levels, ScaledValues, Scales, scaled_values
from ddpm_jax.errors import check
from ddpm_jax.image_size import ImageSize

BLOCK = 256
"""The number of images whose brightness is computed at once."""


class Part(NamedTuple):
    """An array of a batch that is a condition."""

    name: str
    axes: int
    """The number of axes of one condition."""
    setting: str
    """The setting of a network that makes it take the part, which is the size of the last axis."""
    unit: str
    """The unit of that size."""


VECTOR = Part("vector", 1, "vector_size", "numbers")
IMAGE = Part("condition_image", 3, "condition_channels", "channels")
PARTS = (VECTOR, IMAGE)


class Kind(NamedTuple):
    """A kind of conditions: where they come from, and how they are scaled."""

    part: Part
    values: Callable[[ConditionedImages], Levels]
    """(images) -> the scale of their conditions."""
    make: Callable[[ConditionedImages, np.ndarray, np.ndarray], np.ndarray]
    """(images, indices, inputs of a network) -> conditions, as a network takes them."""
    size: Callable[[int], int] | None
    """(channels of the images) -> size of a condition that is made of them; None for a condition
    that comes with the data."""
    needs_levels: bool = False
    """Whether the condition is defined for 8-bit images alone."""


@dataclasses.dataclass(frozen=True)
class ConditionedImages(WrappedImages):
    """An `ImageSet` whose batches hold the condition of a source, as a network takes it."""

    source: DataSource
    saved_values: Levels | None = None
    """The scale of a trained network, which replaces that of the data."""

    @property
    def kind(self) -> Kind:
        assert self.source.condition is not None
        return KINDS[self.source.condition]

    @property
    def part(self) -> Part:
        return self.kind.part

    @functools.cached_property
    def condition_values(self) -> Levels:
        """The scale of the conditions, computed when it is first needed unless one is saved."""
        return self.saved_values or self.kind.values(self)

    @property
    def has_levels(self) -> bool:
        """Whether conditions are 8-bit levels, for which no scale is computed."""
        if self.part == VECTOR:
            return False
        return self.values == LEVELS if self.kind.size else self.conditions.dtype == np.uint8

    @property
    def name(self) -> str:
        """The conditions in messages."""
        return f"the conditions of this data ({self.source.describe()})"

    def read(self, indices: np.ndarray) -> Batch:
        batch = self.stored.read(indices)
        x = to_floats(batch["image"])
        return batch | {self.part.name: self.kind.make(self, indices, x)}


def load_conditioned(
    source: DataSource, image_size: ImageSize, channels: int, scales: Scales | None = None
) -> ImageSet:
    """Load the images of a source with the condition of its settings, if they have one.

    `scales` of a trained network replace those of the data, which are then not computed.
    """
    scales = scales or Scales()
    images = source.load_as(image_size, channels, scales.values)
    return with_condition_values(with_condition(source, images), scales.condition_values)


def with_condition(source: DataSource, images: ImageSet) -> ImageSet:
    """Images with the condition that a source sets. Raise ValueError if it is impossible."""
    if source.condition is None:
        return images
    conditioned = ConditionedImages(images, source)
    kind = conditioned.kind
    check(
        kind.size is not None or conditioned.conditions is not None,
        f"This data ({source.describe()}) gives no conditions: leave data.condition out, or "
        "choose one that is made of the images.",
    )
    check(
        not kind.needs_levels or images.values == LEVELS,
        "Brightness and grey copies are of levels from 0 to 255, which this data does not have: "
        "leave data.condition out, or give conditions with the data.",
    )
    return conditioned


def with_condition_values(images: ImageSet, values: Levels | None) -> ImageSet:
    """Scale conditions as those of a trained network; None keeps the scale of the data.

    A scale that is replaced is not computed. Raise ValueError if one of the two is that of 8-bit
    levels and the other is not, and for conditions in another unit.
    """
    if values is None or not isinstance(images, ConditionedImages):
        return images
    ours = LEVELS.describe() if images.has_levels else "numbers of any unit"
    check(
        (values == LEVELS) == images.has_levels,
        f"The conditions of this data are {ours}, but the network was trained on "
        f"{values.describe()}: give conditions in that unit.",
    )
    if isinstance(values, ScaledValues) and images.conditions is not None:
        check_unit(InMemory(images.conditions), values, "conditions")
    return dataclasses.replace(images, saved_values=values)


def condition_values_of(images: ImageSet) -> Levels:
    """The scale of the conditions of images."""
    return images.condition_values if isinstance(images, ConditionedImages) else LEVELS


def given_part(condition: ConditionKind | None) -> Part | None:
    """The part of a condition that comes with the data; None for no such condition."""
    if condition is None or KINDS[condition].size is not None:
        return None
    return KINDS[condition].part


def _vector(images: ConditionedImages, indices: np.ndarray, x: np.ndarray) -> np.ndarray:
    return images.condition_values.to_network(images.conditions[indices])


def _vector_values(images: ConditionedImages) -> Levels:
    return standardised(images, images.conditions)


def _brightness(images: ConditionedImages, indices: np.ndarray, x: np.ndarray) -> np.ndarray:
    return images.condition_values.to_network(mean_levels(x))


def _brightness_values(images: ConditionedImages) -> Levels:
    blocks = np.array_split(np.arange(len(images)), -(-len(images) // BLOCK))
    means = [mean_levels(to_floats(images.stored.read(block)["image"])) for block in blocks]
    return standardised(images, np.concatenate(means))


def _image(images: ConditionedImages, indices: np.ndarray, x: np.ndarray) -> np.ndarray:
    given = images.condition_values.to_network(images.conditions[indices])
    return enlarge(given, x.shape[1:3])


def _image_values(images: ConditionedImages) -> Levels:
    given = InMemory(images.conditions)
    if images.has_levels:
        remedy = "store them as booleans or floats, which are scaled by their range"
        warn_of_few_levels(given, images.name, remedy)
        return LEVELS
    pairs = computed_pairs(given, "range", images.name, remedy="leave it out")
    return scaled_values("range", pairs, images.conditions.dtype)


def _reduced(images: ConditionedImages, indices: np.ndarray, x: np.ndarray) -> np.ndarray:
    return reduced_copy(x, images.source.reduction)


def _grey(images: ConditionedImages, indices: np.ndarray, x: np.ndarray) -> np.ndarray:
    return grey_copy(x)


def _values_of_images(images: ConditionedImages) -> Levels:
    return images.values


KINDS: dict[ConditionKind, Kind] = {
    "vector": Kind(VECTOR, _vector_values, _vector, None),
    "brightness": Kind(
        VECTOR, _brightness_values, _brightness, lambda channels: 1, needs_levels=True
    ),
    "image": Kind(IMAGE, _image_values, _image, None),
    "reduced": Kind(IMAGE, _values_of_images, _reduced, lambda channels: channels),
    "grey": Kind(IMAGE, _values_of_images, _grey, lambda channels: 1, needs_levels=True),
}
"""All that differs between the kinds of conditions, one row a kind."""


def mean_levels(x: np.ndarray) -> np.ndarray:
    """The mean level (n, 1), from 0 to 255, of images as a network takes them."""
    pixels = x.reshape(len(x), -1).astype(np.float64)  # (n, h * w * c)
    return 127.5 * (pixels.mean(1, keepdims=True) + 1)


def standardised(images: ConditionedImages, vectors: np.ndarray | Rows) -> Levels:
    """The scale with which each number of vectors (n, k) has mean 0 and deviation 1.

    Raise ValueError for a number that is the same for all.
    """
    pairs = computed_pairs(InMemory(vectors), "deviation", images.name, "Number", "leave it out")
    return scaled_values("deviation", pairs, np.dtype(np.float64))
