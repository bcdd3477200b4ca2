"""Vectors from columns of a table: numbers, booleans, or lists of these of one length."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ddpm_jax.data.labels import is_number
from ddpm_jax.errors import check

if TYPE_CHECKING:
    import pyarrow as pa


def read_vectors(table: pa.Table, columns: tuple[str, ...], name: str) -> np.ndarray:
    """The numbers (n, k) of all columns in float64; NaN for null.

    Raise ValueError for other values; the message calls the data `name`.
    """
    parts = [_read_column(table[column], column, name) for column in columns]
    return np.concatenate(parts, 1)


def _read_column(values: pa.ChunkedArray, column: str, name: str) -> np.ndarray:
    """The numbers (n, k) of one column, where k is 1 unless it holds lists; NaN for a null list."""
    import pyarrow.compute as pc

    array = values.combine_chunks()
    described = f"column {column!r} of {name}"
    if not is_list(array.type):
        return _floats(array, described)[:, None]
    lengths = set(pc.list_value_length(array).drop_null().to_pylist())
    check(
        len(lengths) == 1 and 0 not in lengths,
        f"The lists in {described} have different lengths or hold nothing: give each image a list "
        "of the same length, or null to leave it out.",
    )
    vectors = np.full((len(array), lengths.pop()), np.nan)
    is_present = array.is_valid().to_numpy(zero_copy_only=False)
    vectors[is_present] = _floats(array.flatten(), described).reshape(-1, vectors.shape[1])
    return vectors


def _floats(numbers: pa.Array, described: str) -> np.ndarray:
    """Numbers or booleans in float64; NaN for null."""
    import pyarrow as pa

    check(
        is_number(numbers.type),
        f"The values in {described} are {numbers.type}: choose --data.condition-columns of "
        "numbers, or of lists of numbers.",
    )
    if pa.types.is_boolean(numbers.type):
        numbers = numbers.cast(pa.uint8())
    # Integers beyond 2^53 are rounded.
    return numbers.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)


def is_list(kind: pa.DataType) -> bool:
    """Whether values of this type are lists."""
    from pyarrow import types

    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
