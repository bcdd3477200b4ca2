"""Class labels: find the column that holds them, and convert its values to integers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ddpm_jax.data import UNLABELED
from ddpm_jax.data.folder import natural_key

if TYPE_CHECKING:
    import pyarrow as pa

LABEL_NAMES = (
    "label",
    "labels",
    "fine_label",
    "coarse_label",
    "class",
    "class_name",
    "category",
    "target",
)
"""Names of columns that usually hold class labels, the most likely first."""


def choose_labels(
    requested: str | None, columns: Sequence[str], declared: Sequence[str], name: str, setting: str
) -> str:
    """The column of the labels: `requested`; if it is None, the most likely one; "" for none.

    Columns are likely by their names in `LABEL_NAMES`, then by being `declared` as classes. The
    choice among several is printed to stderr. Raise ValueError if `requested` is not in `columns`;
    the message calls the data `name` and names the `setting`.
    """
    if requested is None:
        named = [column for column in LABEL_NAMES if column in columns]
        likely = list(dict.fromkeys([*named, *declared]))
        return first_of(likely, f"labels of {name}", setting) if likely else ""
    if requested and requested not in columns:
        remedy = f"choose {setting} among {', '.join(columns)}"
        raise ValueError(
            f"{name} has no labels {requested!r}: {remedy if columns else f'leave out {setting}'}."
        )
    return requested


def first_of(candidates: Sequence[str], content: str, setting: str) -> str:
    """The first candidate. Print it to stderr, with the setting for another, if there are more."""
    first, *others = candidates
    if others:
        print(
            f"The {content} come from {first!r}: choose {' or '.join(map(repr, others))} "
            f"with {setting}.",
            file=sys.stderr,
        )
    return first


def class_labels(
    values: pa.ChunkedArray, name: str, setting: str
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """The labels as int32 (n,), and the names of the classes if the values are strings.

    Strings are numbered in natural order. Booleans and whole floats become integers, null and NaN
    become `UNLABELED`. Raise ValueError for any other value; the message calls the values `name`
    and names the `setting` that selects other ones.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(values.type):
        # ChunkedArray.to_numpy would return another value of the dictionary for null.
        values = values.cast(values.type.value_type)
    if is_text(values.type):
        values = values.cast(pa.large_string())
        names = sorted(values.unique().drop_null().to_pylist(), key=natural_key)
        values = pc.index_in(values, pa.array(names, pa.large_string()))
        return values.fill_null(UNLABELED).to_numpy(), tuple(names)
    if pa.types.is_floating(values.type):
        values = values.cast(pa.float64())
        values = pc.if_else(pc.is_nan(values), None, values)
    try:
        if not is_number(values.type):
            raise pa.ArrowInvalid(f"type {values.type}")
        # The cast refuses fractions and integers beyond 32 bits.
        labels = values.cast(pa.int32())
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{name} cannot be class labels ({error}): choose others with {setting}, "
            f"or {setting} '' for none."
        ) from error
    return labels.fill_null(UNLABELED).to_numpy(), None


def is_text(kind: pa.DataType) -> bool:
    """Whether values of this type are strings."""
    from pyarrow import types

    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def is_number(kind: pa.DataType) -> bool:
    """Whether values of this type are numbers, booleans or all null."""
    from pyarrow import types

    kinds = (types.is_integer, types.is_floating, types.is_boolean, types.is_null)
    return any(is_kind(kind) for is_kind in kinds)
