"""Features: functions from images to vectors, in which sets of images are compared.

Each file of this package is one kind of features. The module's name is the name on the command
line (`--features pixels`), and its function `load(images)` returns the `Features`.
They are plain functions over arrays, neither Flax nor `Model`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ddpm_jax.data import ImageSet
from ddpm_jax.errors import check


class Features(NamedTuple):
    """A function from images to vectors, and how it was made."""

    name: str
    weights: str
    """A short hash of the weights; empty without weights."""
    resize: str
    """How images are resized first, such as "bilinear to 224"."""
    apply: Callable[[np.ndarray], np.ndarray]
    """uint8 images (n, h, w, c) to floats (n, d)."""


def names() -> list[str]:
    """The names of all features, which are the public modules of this package."""
    return sorted(
        module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")
    )


def check_features(name: str) -> None:
    """Raise ValueError, with the valid names, for an unknown name."""
    known = names()
    check(name in known, f"Unknown features {name!r}: choose one of {', '.join(known)}.")


def load_features(name: str, images: ImageSet | None = None) -> Features:
    """Load the features `name`. `images` are the reference images, for features trained on them.

    Raise ValueError for an unknown name, and whatever the module raises.
    """
    check_features(name)
    return importlib.import_module(f"{__name__}.{name}").load(images)
