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
    """The numbers (n, k) of one column, where k is 1 unless it holds lists."""
    import pyarrow as pa

    if is_list(values.type):
        lengths = set(values.combine_chunks().value_lengths().to_pylist())
        check(
            len(lengths) == 1 and None not in lengths,
            f"The lists in column {column!r} of {name} have different lengths: give each image a "
            "list of the same length.",
        )
        numbers = values.combine_chunks().flatten()
    else:
        numbers = values.combine_chunks()
    check(
        is_number(numbers.type) or pa.types.is_floating(numbers.type),
        f"Column {column!r} of {name} holds {values.type}: choose --data.condition-columns of "
        "numbers, or of lists of numbers.",
    )
    if pa.types.is_boolean(numbers.type):
        numbers = numbers.cast(pa.uint8())
    return numbers.cast(pa.float64()).to_numpy(zero_copy_only=False).reshape(len(values), -1)


def is_list(kind: pa.DataType) -> bool:
    """Whether values of this type are lists."""
    from pyarrow import types

    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
