"""Distances between all pairs of two sets of vectors, a block of rows at a time, in float64."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

PAIRS = 2**23
"""Pairs in a block: 64 MiB of float64."""


def row_blocks(a: np.ndarray, b: np.ndarray) -> list[slice]:
    """Slices of the rows of `a` with at most `PAIRS` pairs with the rows of `b`, or of one row."""
    size = max(PAIRS // len(b), 1)
    return [slice(start, start + size) for start in range(0, len(a), size)]


def squared_distances(
    a: Float[np.ndarray, "m d"], b: Float[np.ndarray, "n d"]
) -> Iterator[tuple[slice, Float[np.ndarray, "rows n"]]]:
    """Yield blocks of rows of `a`, and the squared distances of these rows to all rows of `b`.

    Distances within the rounding error are 0, so copies have the distance 0.
    """
    # |x - y|^2 = |x|^2 + |y|^2 - 2 x.y loses the digits of a common offset.
    centre = b.mean(0, dtype=np.float64)
    b = b - centre[None]
    b_norms = np.sum(b * b, 1)
    rounding = a.shape[1] * np.finfo(np.float64).eps  # of a sum of d products
    for rows in row_blocks(a, b):
        block = a[rows] - centre[None]
        norms = np.sum(block * block, 1)
        norms = norms[:, None] + b_norms[None]
        squared = norms - 2 * block @ b.T
        yield rows, np.where(squared <= rounding * norms, 0, squared)


def leave_out(squared: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Set the distance of each vector to itself to infinity, in place.

    It is in the column `columns[i]` of row i.
    """
    squared[np.arange(len(squared)), columns] = np.inf
    return squared
