"""Conditions of images: vectors of numbers, and images to concatenate.

The data gives a condition for each image, or it is computed from the image. Vectors are
standardised, images are scaled as images are. Each checkpoint saves the scale.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from ddpm_jax.data import Batch, ConditionKind, DataSource, ImageSet
from ddpm_jax.data.arrays import computed_pairs
from ddpm_jax.data.condition_images import enlarge, grey_copy, reduced_copy
from ddpm_jax.data.loading import InMemory
from ddpm_jax.data.pixels import to_floats
from ddpm_jax.data.values import LEVELS, Levels, scaled_values
from ddpm_jax.errors import check
from ddpm_jax.image_size import ImageSize

BLOCK = 256
"""The number of images that statistics are computed of at once."""
PARTS: dict[ConditionKind, str] = {
    "vector": "vector",
    "brightness": "vector",
    "image": "condition_image",
    "reduced": "condition_image",
    "grey": "condition_image",
}
"""The name of each kind's array in a batch."""

Make = Callable[[Levels, np.ndarray, np.ndarray], np.ndarray]
"""(scale, indices, inputs of a network) -> conditions, as a network takes them."""


@dataclasses.dataclass(frozen=True)
class ConditionedImages:
    """An `ImageSet` whose batches hold a condition, as a network takes it, named `part`."""

    stored: ImageSet
    part: str
    make: Make
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
        x = to_floats(batch["image"])
        return batch | {self.part: self.make(self.condition_values, indices, x)}


def load_conditioned(source: DataSource, image_size: ImageSize, channels: int) -> ImageSet:
    """Load the images of a source with the condition of its settings, if they have one."""
    return with_condition(source, source.load(image_size, channels))


def with_condition(source: DataSource, images: ImageSet) -> ImageSet:
    """Images with the condition that a source sets. Raise ValueError if it is impossible."""
    if source.condition is None:
        return images
    make, values = KINDS[source.condition](source, images)
    return ConditionedImages(images, PARTS[source.condition], make, values)


def _given(source: DataSource, images: ImageSet) -> np.ndarray:
    """The conditions (n, ...) that the source gives."""
    conditions = getattr(images, "conditions", None)
    if conditions is None:
        raise ValueError(
            f"This data ({source.describe()}) gives no conditions: leave data.condition out, or "
            "choose one that is made of the images."
        )
    return conditions


def _vector(source: DataSource, images: ImageSet) -> tuple[Make, Levels]:
    vectors = np.asarray(_given(source, images))
    return lambda values, i, x: values.to_network(vectors[i]), standardised(source, vectors)


def _brightness(source: DataSource, images: ImageSet) -> tuple[Make, Levels]:
    _check_levels(images)
    blocks = np.array_split(np.arange(len(images)), -(-len(images) // BLOCK))
    means = np.concatenate([mean_levels(to_floats(images.read(i)["image"])) for i in blocks])
    return lambda values, i, x: values.to_network(mean_levels(x)), standardised(source, means)


def _image(source: DataSource, images: ImageSet) -> tuple[Make, Levels]:
    conditions = _given(source, images)
    image_size = images.read(np.arange(1))["image"].shape[1:3]
    values = LEVELS
    if conditions.dtype != np.uint8:
        pairs = computed_pairs(InMemory(conditions), "range", _name(source), remedy="leave it out")
        values = scaled_values("range", pairs, conditions.dtype)
    return lambda values, i, x: enlarge(values.to_network(conditions[i]), image_size), values


def _reduced(source: DataSource, images: ImageSet) -> tuple[Make, Levels]:
    return lambda values, i, x: reduced_copy(x, source.reduction), images.values


def _grey(source: DataSource, images: ImageSet) -> tuple[Make, Levels]:
    _check_levels(images)
    return lambda values, i, x: grey_copy(x), LEVELS


KINDS: dict[ConditionKind, Callable[[DataSource, ImageSet], tuple[Make, Levels]]] = {
    "vector": _vector,
    "brightness": _brightness,
    "image": _image,
    "reduced": _reduced,
    "grey": _grey,
}
"""The function and the scale of each kind."""


def _check_levels(images: ImageSet) -> None:
    check(
        images.values == LEVELS,
        "Brightness and grey copies are of levels from 0 to 255, which this data does not have: "
        "leave data.condition out, or give conditions with the data.",
    )


def mean_levels(x: np.ndarray) -> np.ndarray:
    """The mean level (n, 1), from 0 to 255, of images as a network takes them."""
    pixels = x.reshape(len(x), -1).astype(np.float64)  # (n, h * w * c)
    return 127.5 * (pixels.mean(1, keepdims=True) + 1)


def standardised(source: DataSource, vectors: np.ndarray) -> Levels:
    """The scale with which each number of vectors (n, k) has mean 0 and deviation 1.

    Raise ValueError for a number that is the same for all.
    """
    stored = InMemory(vectors[:, None, None])
    pairs = computed_pairs(stored, "deviation", _name(source), "Number", "leave it out")
    return scaled_values("deviation", pairs, np.dtype(np.float64))


def _name(source: DataSource) -> str:
    return f"the conditions of this data ({source.describe()})"


def with_statistics(images: ImageSet, condition_values: Levels | None) -> ImageSet:
    """Replace the scale of the conditions by that of a trained network; None keeps their own.

    Raise ValueError if one of the two is that of 8-bit levels and the other is not.
    """
    if condition_values is None or not isinstance(images, ConditionedImages):
        return images
    check(
        (condition_values == LEVELS) == (images.condition_values == LEVELS),
        f"The conditions of this data are {images.condition_values.describe()}, but the network "
        f"was trained on {condition_values.describe()}: give conditions in that unit.",
    )
    return dataclasses.replace(images, condition_values=condition_values)


def condition_values_of(images: ImageSet) -> Levels:
    """The scale of the conditions of images."""
    return images.condition_values if isinstance(images, ConditionedImages) else LEVELS
