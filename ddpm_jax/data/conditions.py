"""Conditions of images: vectors of numbers, and images to concatenate.

A condition comes with the data, or is made of each image. It is scaled for a network as images are,
and its scale is saved with each checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from ddpm_jax.data import Batch, ConditionKind, DataSource, ImageSet
from ddpm_jax.data.arrays import computed_pairs
from ddpm_jax.data.loading import InMemory
from ddpm_jax.data.pixels import to_floats
from ddpm_jax.data.values import LEVELS, Levels, scaled_values
from ddpm_jax.errors import check
from ddpm_jax.image_size import ImageSize

BLOCK = 256
"""The number of images that statistics are computed of at once."""
PARTS: dict[ConditionKind, str] = {"vector": "vector", "brightness": "vector"}
"""The name of each kind's array in a batch."""

Raw = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(indices, images as a network takes them) -> the conditions of these images."""


@dataclasses.dataclass(frozen=True)
class ConditionedImages:
    """An `ImageSet` whose batches hold a condition, as a network takes it, named `part`."""

    stored: ImageSet
    part: str
    raw: Raw
    condition_values: Levels

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
    def values(self) -> Levels:
        return self.stored.values

    def __len__(self) -> int:
        return len(self.stored)

    def read(self, indices: np.ndarray) -> Batch:
        batch = self.stored.read(indices)
        raw = self.raw(indices, to_floats(batch["image"]))
        return batch | {self.part: self.condition_values.to_network(raw)}


def load_conditioned(source: DataSource, image_size: ImageSize, channels: int) -> ImageSet:
    """Load the images of a source with the condition of its settings, if they have one."""
    return with_condition(source, source.load(image_size, channels))


def with_condition(source: DataSource, images: ImageSet) -> ImageSet:
    """Images with the condition that a source sets. Raise ValueError if it is impossible."""
    if source.condition is None:
        return images
    raw = brightness(images) if source.condition == "brightness" else given(source, images)
    return ConditionedImages(
        images, PARTS[source.condition], raw, standardised(source, images, raw)
    )


def given(source: DataSource, images: ImageSet) -> Raw:
    """The conditions that the source gives."""
    conditions = getattr(images, "conditions", None)
    if conditions is None:
        raise ValueError(
            f"This data ({source.describe()}) gives no conditions: leave data.condition out, or "
            "choose one that is made of the images."
        )
    return lambda indices, x: conditions[indices]


def brightness(images: ImageSet) -> Raw:
    """The mean level of each image, from 0 to 255."""
    check(
        images.values == LEVELS,
        "Brightness is the mean of levels from 0 to 255, which this data does not have: leave "
        "data.condition out, or give conditions with the data.",
    )

    def raw(indices: np.ndarray, x: np.ndarray) -> np.ndarray:
        pixels = x.reshape(len(x), -1).astype(np.float64)  # (n, h * w * c)
        return 127.5 * (pixels.mean(1, keepdims=True) + 1)

    return raw


def standardised(source: DataSource, images: ImageSet, raw: Raw) -> Levels:
    """The scale with which each number has mean 0 and deviation 1 over all images.

    Raise ValueError for a number that is the same for all.
    """
    blocks = np.array_split(np.arange(len(images)), -(-len(images) // BLOCK))
    given = getattr(images, "conditions", None)
    if source.condition == "vector":
        vectors = np.asarray(given)
    else:
        vectors = np.concatenate([raw(i, to_floats(images.read(i)["image"])) for i in blocks])
    pairs = computed_pairs(
        InMemory(vectors[:, None, None]),
        "deviation",
        f"the conditions of this data ({source.describe()})",
        "Number",
        "leave it out",
    )
    return scaled_values("deviation", pairs, np.dtype(np.float64))


def with_statistics(images: ImageSet, condition_values: Levels | None) -> ImageSet:
    """Images whose conditions have the scale of those that a network was trained on."""
    if condition_values is None or not isinstance(images, ConditionedImages):
        return images
    return dataclasses.replace(images, condition_values=condition_values)


def condition_values_of(images: ImageSet) -> Levels:
    """The scale of the conditions of images."""
    return images.condition_values if isinstance(images, ConditionedImages) else LEVELS
