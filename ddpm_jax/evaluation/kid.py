"""The kernel inception distance: the squared maximum mean discrepancy with a cubic kernel.

k(x, y) = (x.y / d + 1)^3                                           section 4, Binkowski et al. 2018

The estimate is unbiased: its mean is 0 for sets of the same distribution, so it can be negative.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ddpm_jax.errors import check
from ddpm_jax.evaluation.distances import row_blocks

BLOCKS = 20
"""Number of blocks of the jackknife."""


class Kid(NamedTuple):
    """The estimate, and its standard error by the block jackknife."""

    value: float
    error: float


class BlockSums(NamedTuple):
    """The kernel, summed over the pairs of every pair of blocks, and the sizes of the blocks.

    Pairs of a vector with itself are left out.
    """

    aa: Float[np.ndarray, "k k"]
    bb: Float[np.ndarray, "k k"]
    ab: Float[np.ndarray, "k k"]
    a_sizes: np.ndarray
    b_sizes: np.ndarray

    def estimate(self, kept: np.ndarray) -> float:
        """The unbiased estimate from the blocks with these indices."""
        m = self.a_sizes[kept].sum()
        n = self.b_sizes[kept].sum()
        aa, bb, ab = (sums[np.ix_(kept, kept)].sum() for sums in self[:3])
        return float(aa / (m * (m - 1)) + bb / (n * (n - 1)) - 2 * ab / (m * n))


def kernel_distance(a: Float[np.ndarray, "m d"], b: Float[np.ndarray, "n d"]) -> Kid:
    """The unbiased estimate from all pairs, and its error.

    Both sets are cut into equally many blocks at random, always the same ones. Each jackknife value
    leaves out one block of either set. Raise ValueError for fewer than four vectors in a set.
    """
    smaller = min(len(a), len(b))
    check(smaller >= 4, f"KID needs at least four images, not {smaller}: give more.")
    blocks = np.arange(min(BLOCKS, smaller // 2))
    sums = sum_by_blocks(shuffled(a), shuffled(b), len(blocks))
    left_out = [sums.estimate(np.delete(blocks, i)) for i in blocks]
    error = np.std(left_out) * np.sqrt(len(blocks) - 1)
    return Kid(sums.estimate(blocks), float(error))


def shuffled(vectors: np.ndarray) -> np.ndarray:
    """The vectors in a random order, always the same one, because data is often sorted by class."""
    return vectors[np.random.RandomState(0).permutation(len(vectors))].astype(np.float64)


def sum_by_blocks(a: np.ndarray, b: np.ndarray, num_blocks: int) -> BlockSums:
    """Cut both sets into blocks of nearly equal size, and sum the kernel over their pairs."""
    a_starts, b_starts = (np.arange(num_blocks) * len(x) // num_blocks for x in (a, b))
    return BlockSums(
        kernel_sums(a, a, a_starts, a_starts) - np.diag(np.add.reduceat(self_kernel(a), a_starts)),
        kernel_sums(b, b, b_starts, b_starts) - np.diag(np.add.reduceat(self_kernel(b), b_starts)),
        kernel_sums(a, b, a_starts, b_starts),
        np.diff(a_starts, append=len(a)),
        np.diff(b_starts, append=len(b)),
    )


def kernel_sums(
    a: np.ndarray, b: np.ndarray, a_starts: np.ndarray, b_starts: np.ndarray
) -> Float[np.ndarray, "k k"]:
    """The kernel, summed over the pairs of every pair of blocks, which begin at the starts."""
    by_row = [
        np.add.reduceat(kernel(a[rows] @ b.T, a.shape[1]), b_starts, axis=1)
        for rows in row_blocks(a, b)
    ]  # (rows, k)
    return np.add.reduceat(np.concatenate(by_row), a_starts, axis=0)


def self_kernel(vectors: np.ndarray) -> np.ndarray:
    """The kernel of each vector with itself."""
    return kernel(np.sum(vectors**2, 1), vectors.shape[1])


def kernel(products: np.ndarray, dimensions: int) -> np.ndarray:
    """The cubic kernel of inner products of vectors with this many dimensions."""
    return (products / dimensions + 1) ** 3
