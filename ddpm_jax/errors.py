"""Errors that a user can correct: one line with cause and remedy.

The checks of arrays read shapes alone, so they cost nothing in a compiled program.
"""

import functools
import numbers
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np


def check(condition: bool, message: str) -> None:
    """Raise ValueError(message) unless the condition holds."""
    if not condition:
        raise ValueError(message)


def one_line(error: BaseException, limit: int | None = None) -> str:
    """The message of an error as one line, cut to `limit` characters."""
    return " ".join(str(error).split())[:limit]


def check_at_least(minimum: int, **values: Any) -> None:
    """Raise ValueError for a Python number below `minimum`. None passes, and an array unread."""
    for name, value in values.items():
        if isinstance(value, numbers.Real):
            check(float(value) >= minimum, f"{name} must be at least {minimum}, not {value}.")


def check_choice(valid: Iterable[str], **names: Any) -> None:
    """Raise ValueError for a name that is not among the valid ones."""
    for what, name in names.items():
        known = list(valid)
        if name not in known:
            raise ValueError(f"Unknown {what} {name!r}: choose one of {', '.join(known)}.")


def check_whole(**values: Any) -> None:
    """Raise ValueError for a Python number that is no integer. None passes, and an array unread."""
    for name, value in values.items():
        if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral):
            raise ValueError(f"{name} must be a whole number, not {value}.")


def check_settings(settings: Any) -> None:
    """Raise ValueError for a setting of a dataclass that does not have the type of its field.

    The types read are flags, numbers, texts, Literals, tuples of one of these, and each of these or
    None. An array passes unread. Python itself accepts any value.
    """
    kind: Any = type(settings)
    for name, allowed in _allowed_values(kind).items():
        value = getattr(settings, name)
        if isinstance(value, (jax.Array, np.ndarray)) or (value is None and allowed.optional):
            continue
        if allowed.several:
            is_tuple = isinstance(value, (tuple, list))
            check(is_tuple, f"{name} must be a tuple: write ({value!r},), not {value!r}.")
        for each in value if allowed.several else (value,):
            if get_origin(allowed.element) is Literal:
                check_choice(get_args(allowed.element), **{name: each})
            else:
                types, description = _TYPES[allowed.element]
                check(isinstance(each, types), f"{name} must be {description}, not {each!r}.")


_TYPES: dict[Any, tuple[Any, str]] = {
    bool: ((bool, np.bool_), "True or False"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    str: (str, "a text"),
}


class _Allowed(NamedTuple):
    """What a field allows: an element or a tuple of several, and whether it may be None."""

    element: Any
    several: bool
    optional: bool


@functools.cache
def _allowed_values(kind: Any) -> dict[str, _Allowed]:
    """What each field of a dataclass allows, of those that `check_settings` reads."""
    found = {}
    for name, hint in get_type_hints(kind).items():
        optional = type(None) in get_args(hint)
        alternatives = [x for x in get_args(hint) if x is not type(None)] if optional else [hint]
        element = alternatives[0]
        several = get_origin(element) is tuple
        if several:
            element = get_args(element)[0]
        if len(alternatives) == 1 and (element in _TYPES or get_origin(element) is Literal):
            found[name] = _Allowed(element, several, optional)
    return found


def check_ascending(**ranges: Any) -> None:
    """Raise ValueError for a pair of Python numbers that descends. None passes."""
    for name, pair in ranges.items():
        if pair is not None and all(isinstance(value, numbers.Real) for value in pair):
            low, high = pair
            check(low <= high, f"{name} must be in ascending order, not {low} {high}.")


def check_seed(seed: Any, name: str = "seed", bits: int = 32) -> None:
    """Raise ValueError for a Python number that is no integer in [0, 2**bits). An array passes."""
    check_whole(**{name: seed})
    if isinstance(seed, numbers.Integral):
        check(0 <= int(seed) < 2**bits, f"{name} must be in [0, 2**{bits}), not {seed}.")


def check_shape(shape: tuple[Any, ...], /, **arrays: Any) -> None:
    """Raise ValueError for an array of another shape, which JAX might broadcast. None passes.

    A size may be symbolic, as in `jax.export`.
    """
    for name, array in arrays.items():
        given = getattr(array, "shape", ())
        if array is not None and given != shape:
            raise ValueError(f"{name} must have shape {shape} to match the batch, not {given}.")


def check_floats(**arrays: Any) -> None:
    """Raise ValueError for images of integers, which are levels of 8 bits. None passes."""
    for name, array in arrays.items():
        if array is not None and not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(
                f"{name} must be floats in [-1, 1], not {array.dtype}: convert them with "
                "data.pixels.to_floats."
            )


def check_rows(count: Any, /, **arrays: Any) -> None:
    """Raise ValueError for an array, or one in a pytree, without `count` rows. None passes.

    The count may be symbolic, as in `jax.export`.
    """
    for name, tree in arrays.items():
        for array in jax.tree.leaves(tree):
            given = getattr(array, "shape", ())
            if given[:1] != (count,):
                rows = f"{count} rows, one per image"
                raise ValueError(f"{name} must have {rows}, not shape {given}.")
