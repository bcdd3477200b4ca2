"""Images to train on: one data source per file, and one deterministic stream of batches for all.

A data source is a frozen dataclass, a subclass of `DataSource`. Its name on the command line is the
name of its module. `load(image_size, channels)` returns images of one size as an `ImageSet`.
What sources share: `decode` reads and resizes an image, `loading` decodes a whole set and skips
corrupt images, `batches` makes each global batch a pure function of (seed, step), `pixels` converts
between uint8 and float32, `values` maps any numbers to the inputs of a network and back,
`scaled_images` does so by statistics of a set, `conditions` adds what images are conditioned on.
Imports only `errors`, `home` and `image_size`.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Sequence
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np

from ddpm_jax.data.decode import MAX_PIXELS, File, decode_image
from ddpm_jax.data.values import Levels
from ddpm_jax.errors import check, check_settings
from ddpm_jax.image_size import ImageSize

Batch = dict[str, np.ndarray]
ConditionKind = Literal["vector", "brightness", "image", "reduced", "grey"]
SPLITS = {"train", "test", "validation", "valid", "val", "dev", "eval"}
"""Usual names of the splits of a data set, in lower case."""


UNLABELED = -1
"""The label of an image without one, as in TFDS and on the Hugging Face hub."""
SAME_CLASSES = "use data with the same classes"
SAME_DATA = "use the data that it was trained on"
"""Remedies for labels and for other data that do not fit a trained network."""


@runtime_checkable
class ImageSet(Protocol):
    """A finite set of images of one size.

    `read` returns `image` (n, h, w, c), uint8 or else float32 as a network takes it, and, for a set
    with labels, `label` (n,). `classes` holds the names of the labels 0, 1, ..., or None if the
    data has none. `captions` holds the text of each image, or None if the source was not asked for
    captions. `values` maps between images and the inputs of a network.
    """

    @property
    def labels(self) -> np.ndarray | None: ...

    @property
    def classes(self) -> tuple[str, ...] | None: ...

    @property
    def captions(self) -> tuple[str, ...] | None: ...

    @property
    def values(self) -> Levels: ...

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> Batch: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSource:
    """Base class of all sources of images, with their common settings."""

    takes_any_channels: ClassVar[bool] = False
    """Whether images may have other numbers of channels than 1 (grey) and 3 (RGB)."""

    flip: bool = False
    """Flip each image horizontally with probability 1/2."""
    resize: Literal["crop", "squash"] = "crop"
    """How to fit the aspect ratio: crop to the centre of the image, or squash it."""
    condition: ConditionKind | None = None
    """Condition beside the labels. vector, image: numbers, or images to concatenate, that come with
    the data. brightness: the mean level of each image, from 0 to 255. reduced: a smaller copy of
    each image, enlarged again. grey: a grey copy."""
    reduction: int = 4
    """Factor by which condition reduced makes images smaller."""
    max_corrupt_fraction: float = 0.0
    """Largest fraction of corrupt images to skip, in [0, 1). A larger fraction is an error."""
    max_pixels: int = MAX_PIXELS
    """Largest image to decode, in pixels. Protects memory from decompression bombs."""

    def __post_init__(self):
        for name, value in vars(self).items():
            if isinstance(value, os.PathLike):
                # A config in JSON holds a text, also where a source of one's own takes both.
                object.__setattr__(self, name, os.fspath(value))
        check_settings(self, "data.")
        check(
            0 <= self.max_corrupt_fraction < 1,
            f"data.max_corrupt_fraction must be in [0, 1), not {self.max_corrupt_fraction}.",
        )
        check(self.reduction >= 2, f"data.reduction must be at least 2, not {self.reduction}.")
        check(self.max_pixels >= 1, f"data.max_pixels must be at least 1, not {self.max_pixels}.")

    @property
    def is_bounded(self) -> bool:
        """Whether networks see values in [-1, 1], to which sampling may clip."""
        return True

    @property
    def has_splits(self) -> bool:
        """Whether the setting `split` chooses images."""
        return "split" in vars(self)

    def describe(self) -> str:
        """One line that names the source. Needs no data on disk."""
        raise NotImplementedError

    def load(self, image_size: ImageSize, channels: int) -> ImageSet:
        """Load the images as (h, w, channels) of this size.

        Raise FileNotFoundError or ValueError if that is impossible; the message names the remedy.
        """
        raise NotImplementedError

    def load_as(self, image_size: ImageSize, channels: int, values: Levels | None) -> ImageSet:
        """Load as `load` does. Scale arrays by the values of a trained network, unless None."""
        return self.load(image_size, channels)

    def decode(self, file: File, name: str, image_size: ImageSize, channels: int) -> np.ndarray:
        """Decode an image file with the settings of this source. Raise as `decode_image` does."""
        return decode_image(file, name, image_size, channels, self.resize, self.max_pixels)


def check_labels(
    images: ImageSet,
    num_classes: int | None,
    classes: Sequence[str] | None = None,
    is_trained: bool = False,
) -> None:
    """Raise ValueError unless every image has a label in 0..num_classes-1.

    If `classes`, the names of a trained network's classes, are given, they must be those of the
    images. A network without classes (`num_classes` None) takes any labels, or none. The message
    for a network that `is_trained` names no setting.
    """
    if num_classes is None:
        return
    found = _fault_of_labels(images, num_classes)
    if found is not None:
        fault, remedy = found
        raise ValueError(f"{fault}: {SAME_CLASSES if is_trained else remedy}.")
    if classes is not None:
        check_classes(images.classes, classes, SAME_CLASSES)


def _fault_of_labels(images: ImageSet, num_classes: int) -> tuple[str, str] | None:
    """The first fault of the labels, with its remedy for a new network; None if there is none."""
    if images.labels is None:
        return (
            f"The network is for {num_classes} classes, but this data has no labels",
            "leave num_classes out, or give data with labels",
        )
    num_unlabeled = int(np.count_nonzero(images.labels == UNLABELED))
    if num_unlabeled:
        return (
            f"{num_unlabeled:,} of the {len(images):,} images are unlabeled (their label is -1 or "
            "missing)",
            "choose other labels or another split, or leave num_classes out",
        )
    lowest = images.labels.min()
    highest = images.labels.max()
    labels = f"The labels of this data go from {lowest} to {highest}"
    if lowest < 0:
        return labels, "number the classes from 0, or leave num_classes out"
    if highest >= num_classes:
        return (
            f"{labels}, outside the network's classes 0..{num_classes - 1}",
            f"set num_classes to {highest + 1}",
        )
    return None


def check_classes(
    classes: Sequence[str] | None, trained: Sequence[str] | None, remedy: str
) -> None:
    """Raise ValueError, with the `remedy`, if a class has another name than in training."""
    pairs = itertools.zip_longest(trained or (), classes or (), fillvalue="without a name")
    for label, (before, now) in enumerate(pairs):
        check(
            before == now,
            f"The classes of this data differ from those of the trained network (label {label} was "
            f"{before} and is {now}): {remedy}.",
        )


def check_values(values: Levels, trained: Levels, remedy: str) -> None:
    """Raise ValueError, with the `remedy`, if values are scaled in another way than in training."""
    check(
        values == trained,
        f"The values of this data ({values.describe()}) are not scaled as those of the trained "
        f"network ({trained.describe()}): {remedy}.",
    )


def describe_classes(classes: Sequence[str]) -> str:
    """The labels with their names as one line of text, such as "0: cat, 1: dog"."""
    return ", ".join(f"{label}: {name}" for label, name in enumerate(classes))
