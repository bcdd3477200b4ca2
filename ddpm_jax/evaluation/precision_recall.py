"""Precision and recall of samples by nearest neighbours (Kynkaanniemi et al. 2019).

A set stands for the union of balls around its vectors, each of which reaches to the third nearest
other vector of the set. Precision is the fraction of samples within the balls of the reference;
recall is the fraction of the reference within the balls of the samples (Eq. 1 and 2).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ddpm_jax.errors import check
from ddpm_jax.evaluation.distances import leave_out, squared_distances

NEIGHBOUR = 3
"""k of the paper: the neighbour to which a ball reaches."""


class PrecisionRecall(NamedTuple):
    """Fractions in [0, 1]."""

    precision: float
    recall: float


def precision_recall(
    samples: Float[np.ndarray, "m d"], reference: Float[np.ndarray, "n d"]
) -> PrecisionRecall:
    """Precision and recall. Raise ValueError for a set of three vectors or fewer."""
    smaller = min(len(samples), len(reference))
    check(
        smaller > NEIGHBOUR,
        f"Precision needs more than {NEIGHBOUR} images, not {smaller}: give more.",
    )
    return PrecisionRecall(
        fraction_within(samples, reference, squared_radii(reference)),
        fraction_within(reference, samples, squared_radii(samples)),
    )


def squared_radii(vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """The squared distance of each vector to its third nearest other one."""
    itself = np.arange(len(vectors))
    radii = np.empty(len(vectors))
    for rows, squared in squared_distances(vectors, vectors):
        others = leave_out(squared, itself[rows])
        radii[rows] = np.partition(others, NEIGHBOUR - 1)[:, NEIGHBOUR - 1]
    return radii


def fraction_within(
    vectors: Float[np.ndarray, "m d"],
    centres: Float[np.ndarray, "n d"],
    radii: Float[np.ndarray, " n"],
) -> float:
    """The fraction of vectors within at least one ball, given by squared radii."""
    within = [
        np.any(squared <= radii[None], 1) for _, squared in squared_distances(vectors, centres)
    ]
    return float(np.mean(np.concatenate(within)))
