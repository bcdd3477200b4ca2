"""Feature vectors of images, and what is computed once for a set of reference images."""

import functools
import hashlib
import sys
from pathlib import Path

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from ddpm_jax import home
from ddpm_jax.data import ImageSet
from ddpm_jax.evaluation.features import Features
from ddpm_jax.evaluation.frechet import Moments, moments
from ddpm_jax.evaluation.image_sets import blocks
from ddpm_jax.evaluation.nearest import typical_distance
from ddpm_jax.files import atomic_file

FORMAT = 1
"""The number of the computation of features. A new one leaves the older files of a cache unread."""
HELD_OUT = 10_000
"""Largest number of reference images whose distance to the others is measured."""


class Reference:
    """The feature vectors of reference images, and what is computed of them once."""

    def __init__(self, vectors: Float[np.ndarray, "n d"]):
        self.vectors = vectors

    @functools.cached_property
    def moments(self) -> Moments:
        """The mean of the vectors and a root of their covariance."""
        return moments(self.vectors)

    @functools.cached_property
    def typical_distance(self) -> float:
        """The median distance of a held-out reference image to the nearest other one."""
        return typical_distance(self.vectors, HELD_OUT)


def feature_vectors(
    features: Features, images: ImageSet, name: str = "images"
) -> Float[np.ndarray, "n d"]:
    """The features of all images as float32, with a progress bar."""
    vectors = []
    title = f"{features.name} of {name}"
    with tqdm(total=len(images), desc=title, unit="image", leave=False) as bar:
        for block in blocks(images):
            vectors.append(np.asarray(features.apply(block), np.float32))
            bar.update(len(block))
    return np.concatenate(vectors)


def cached_vectors(features: Features, images: ImageSet, digest: str) -> Float[np.ndarray, "n d"]:
    """The features of reference images, kept in the user's cache folder if they have weights.

    The file's name holds the hashes of the images and of the weights, and `FORMAT`.
    """
    if not features.weights:
        return feature_vectors(features, images, "the reference")
    made_with = "\n".join([features.name, features.weights, features.resize, digest, f"{FORMAT}"])
    name = hashlib.sha256(made_with.encode()).hexdigest()[:16]
    folder = home.cache_folder("the cache of features", "set XDG_CACHE_HOME to a folder")
    path = folder / "features" / f"{features.name}-{name}.npy"
    vectors = _read(path, len(images))
    if vectors is None:
        vectors = feature_vectors(features, images, "the reference")
        _write(path, vectors)
    return vectors


def _read(path: Path, rows: int) -> np.ndarray | None:
    """The array of a file; None if there is none, or if it is damaged."""
    try:
        vectors = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return vectors if vectors.ndim == 2 and len(vectors) == rows else None


def _write(path: Path, vectors: np.ndarray) -> None:
    try:
        with atomic_file(path) as file:
            np.save(file, vectors)
    except OSError as error:
        print(f"The features are not cached ({error}): set XDG_CACHE_HOME.", file=sys.stderr)
