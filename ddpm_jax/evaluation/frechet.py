"""The Frechet distance of two sets of feature vectors, as Gaussians.

|mean_1 - mean_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2))               Eq. 6, Heusel et al. 2017

With Inception features this is the FID. It is biased upwards by an amount that falls with the
number of images, so compare only distances of equally many.

A covariance is kept as a root R with C = R^T R. Then tr (C_1 C_2)^(1/2) is the sum of the singular
values of R_1 R_2^T, because their squares are the eigenvalues of C_1 C_2.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ddpm_jax.errors import check

ROWS = 4096
"""Rows that are converted to float64 at a time."""


class Moments(NamedTuple):
    """The mean of feature vectors and a root R of their covariance R^T R, float64."""

    mean: Float[np.ndarray, " d"]
    root: Float[np.ndarray, "k d"]


def moments(vectors: Float[np.ndarray, "n d"]) -> Moments:
    """The mean and the root of the unbiased covariance, with as few rows as there are vectors.

    Raise ValueError for fewer than two vectors.
    """
    n, d = vectors.shape
    check(n >= 2, f"A covariance needs at least two images, not {n}: give more.")
    mean = vectors.mean(0, dtype=np.float64)
    if n <= d:
        return Moments(mean, (vectors - mean[None]) / np.sqrt(n - 1))
    return Moments(mean, square_root(covariance(vectors, mean)))


def covariance(
    vectors: Float[np.ndarray, "n d"], mean: Float[np.ndarray, " d"]
) -> Float[np.ndarray, "d d"]:
    """The unbiased covariance of vectors with this mean."""
    n, d = vectors.shape
    scatter = np.zeros((d, d))
    for start in range(0, n, ROWS):
        centred = vectors[start : start + ROWS] - mean[None]
        scatter += centred.T @ centred
    return scatter / (n - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
    """The squared Frechet distance of two Gaussians, whose covariances may be singular."""
    root_trace = np.sum(np.linalg.svd(a.root @ b.root.T, compute_uv=False))
    squared_distance = np.sum((a.mean - b.mean) ** 2)
    traces = np.sum(a.root**2) + np.sum(b.root**2)
    return float(squared_distance + traces - 2 * root_trace)


def square_root(covariance: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    """A root of a covariance. Negative eigenvalues are rounding errors."""
    eigenvalues, axes = np.linalg.eigh(covariance)
    return np.sqrt(np.maximum(eigenvalues, 0))[:, None] * axes.T
