"""The Frechet distance of two sets of feature vectors, as Gaussians.

|mean_1 - mean_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2))               Eq. 6, Heusel et al. 2017

With Inception features this is the FID. It is biased upwards by an amount that falls with the
number of images, so compare only distances of equally many.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ddpm_jax.errors import check

ROWS = 4096
"""Rows that are converted to float64 at a time."""


class Moments(NamedTuple):
    """The mean and the covariance of feature vectors, float64."""

    mean: Float[np.ndarray, " d"]
    covariance: Float[np.ndarray, "d d"]


def moments(vectors: Float[np.ndarray, "n d"]) -> Moments:
    """The mean and the unbiased covariance. Raise ValueError for fewer than two vectors."""
    n = len(vectors)
    check(n >= 2, f"A covariance needs at least two images, not {n}.")
    mean = vectors.mean(0, dtype=np.float64)
    scatter = np.zeros((len(mean), len(mean)))
    for start in range(0, n, ROWS):
        centred = vectors[start : start + ROWS] - mean[None]
        scatter += centred.T @ centred
    return Moments(mean, scatter / (n - 1))


def frechet_distance(a: Moments, b: Moments) -> float:
    """The squared Frechet distance of two Gaussians, whose covariances may be singular.

    C_1 C_2 has the eigenvalues of the symmetric C_1^(1/2) C_2 C_1^(1/2), which are not negative.
    """
    root = square_root(a.covariance)
    eigenvalues = np.linalg.eigvalsh(root @ b.covariance @ root)
    root_trace = np.sum(np.sqrt(np.maximum(eigenvalues, 0)))
    squared_distance = np.sum((a.mean - b.mean) ** 2)
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    return float(squared_distance + traces - 2 * root_trace)


def square_root(covariance: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    """The symmetric square root of a covariance. Negative eigenvalues are rounding errors."""
    eigenvalues, axes = np.linalg.eigh(covariance)
    return (axes * np.sqrt(np.maximum(eigenvalues, 0))[None]) @ axes.T
