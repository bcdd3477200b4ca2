"""The nearest reference images of samples, to find copies of training images."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ddpm_jax.errors import check
from ddpm_jax.evaluation.distances import leave_out, squared_distances


class Nearest(NamedTuple):
    """For each vector, the distance to the nearest reference vector and that one's index."""

    distances: Float[np.ndarray, " n"]
    indices: Int[np.ndarray, " n"]


def nearest(samples: Float[np.ndarray, "m d"], reference: Float[np.ndarray, "n d"]) -> Nearest:
    """The nearest reference vector of each sample."""
    distances = np.empty(len(samples))
    indices = np.empty(len(samples), np.int64)
    for rows, squared in squared_distances(samples, reference):
        indices[rows] = np.argmin(squared, 1)
        distances[rows] = np.sqrt(np.min(squared, 1))
    return Nearest(distances, indices)


def typical_distance(reference: Float[np.ndarray, "n d"], maximum: int) -> float:
    """The median distance of a held-out reference vector to the nearest other one.

    At most `maximum` vectors are held out, one at a time: always the same random ones. Raise
    ValueError for fewer than two vectors, and if most of them have a copy.
    """
    check(len(reference) >= 2, "The nearest ratio needs at least two reference images: give more.")
    held_out = np.random.RandomState(0).permutation(len(reference))[:maximum]
    distances = [
        np.min(leave_out(squared, held_out[rows]), 1)
        for rows, squared in squared_distances(reference[held_out], reference)
    ]
    median = float(np.median(np.sqrt(np.concatenate(distances))))
    check(median > 0, "Most reference images have a copy among the others: remove the copies.")
    return median
