"""Feature vectors of images, and what is computed once for a set of reference images."""

import functools
import hashlib
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ddpm_jax import home
from ddpm_jax.data import ImageSet
from ddpm_jax.evaluation.features import Features
from ddpm_jax.evaluation.frechet import Moments, moments
from ddpm_jax.evaluation.image_sets import blocks
from ddpm_jax.evaluation.nearest import typical_distance
from ddpm_jax.files import atomic_file

HELD_OUT = 10_000
"""Largest number of reference images whose distance to the others is measured."""


class Reference:
    """The feature vectors of reference images, and what is computed of them once."""

    def __init__(self, images: ImageSet, features: Features, digest: str, batch_size: int):
        self.vectors = cached_vectors(features, images, digest, batch_size)

    @functools.cached_property
    def moments(self) -> Moments:
        """The mean and the covariance of the vectors."""
        return moments(self.vectors)

    @functools.cached_property
    def typical_distance(self) -> float:
        """The median distance of a held-out reference image to the nearest other one."""
        return typical_distance(self.vectors, HELD_OUT)


def feature_vectors(
    features: Features, images: ImageSet, batch_size: int, name: str = "images"
) -> np.ndarray:
    """The features (n, d) of all images as float32, in batches of one size, with a progress bar."""
    vectors = []
    title = f"{features.name} of {name}"
    with tqdm(total=len(images), desc=title, unit="image", leave=False) as bar:
        for block in blocks(images, batch_size):
            # Fill the last batch with copies, so that a network is compiled for one size.
            filled = block[np.arange(batch_size) % len(block)]
            vectors.append(np.asarray(features.apply(filled), np.float32)[: len(block)])
            bar.update(len(block))
    return np.concatenate(vectors)


def cached_vectors(
    features: Features, images: ImageSet, digest: str, batch_size: int
) -> np.ndarray:
    """The features of reference images, kept in the user's cache folder if they have weights.

    The file's name holds the hashes of the images and of the features, so it is never out of date.
    """
    if not features.weights:
        return feature_vectors(features, images, batch_size, "the reference")
    made_with = "\n".join([features.name, features.weights, features.resize, digest])
    name = hashlib.sha256(made_with.encode()).hexdigest()[:16]
    folder = home.cache_folder("the cache of features", "set XDG_CACHE_HOME to a folder")
    path = folder / "features" / f"{features.name}-{name}.npy"
    vectors = _read(path, len(images))
    if vectors is None:
        vectors = feature_vectors(features, images, batch_size, "the reference")
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
        print(f"The features are not cached ({error}).", file=sys.stderr)
