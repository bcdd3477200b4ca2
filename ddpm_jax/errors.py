"""Errors that a user can correct: one line with cause and remedy.

The checks of arrays read shapes alone, so they cost nothing in a compiled program.
"""

import functools
import numbers
import operator
import os
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


def check_at_least(minimum: int, /, **values: Any) -> None:
    """Raise ValueError for a Python number below `minimum`. None passes, and an array unread."""
    for name, value in values.items():
        if isinstance(value, numbers.Real):
            check(float(value) >= minimum, f"{name} must be at least {minimum}, not {value}.")


def check_choice(valid: Iterable[str], /, **names: Any) -> None:
    """Raise ValueError for a name that is not among the valid ones."""
    for what, name in names.items():
        known = list(valid)
        if name not in known:
            raise ValueError(f"Unknown {what} {name!r}: choose one of {', '.join(known)}.")


def check_whole(**values: Any) -> None:
    """Raise ValueError for a Python number that is no integer. None passes, and an array unread."""
    for name, value in values.items():
        if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral):
            raise ValueError(f"{name} must be an integer, not {value}.")


def to_integer(name: str, value: Any) -> int:
    """The value as Python's integer. Raise ValueError for a flag, and for what is no integer."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise ValueError(f"{name} must be an integer, not {value!r}.")
    return number


def check_settings(settings: Any, prefix: str = "") -> None:
    """Raise ValueError for a setting of a dataclass that does not have the type of its field.

    The types read are flags, numbers, texts, Literals, tuples of one of these, and each of these or
    None. The values become those of `plain`. `prefix` begins the names in messages, such as
    "training.".
    """
    kind: Any = type(settings)
    for name, allowed in _allowed_values(kind).items():
        value = getattr(settings, name)
        if value is None and allowed.optional:
            continue
        value = plain(value)
        object.__setattr__(settings, name, value)
        _check_value(f"{prefix}{name}", value, allowed)


class _Allowed(NamedTuple):
    """The type of a field."""

    element: Any
    """The type of the value, or of each value of a tuple."""
    several: bool
    """Whether the field holds a tuple."""
    length: int | None
    """Length of a tuple; None for any."""
    optional: bool
    """Whether the field may be None."""


_TYPES: dict[Any, tuple[Any, str]] = {
    bool: (bool, "True or False"),
    int: (numbers.Integral, "an integer"),
    float: (numbers.Real, "a number"),
    str: (str, "a text"),
}


@functools.cache
def _allowed_values(kind: Any) -> dict[str, _Allowed]:
    """The types of the fields of a dataclass that `check_settings` reads."""
    try:
        hints = get_type_hints(kind)
    except NameError:
        # A class of a user may name types that are imported for type checkers alone.
        return {}
    found = {name: _read_hint(hint) for name, hint in hints.items()}
    return {name: allowed for name, allowed in found.items() if allowed is not None}


def _read_hint(hint: Any) -> _Allowed | None:
    """Read the hint of a field. Return None for a hint that `check_settings` does not read."""
    optional = type(None) in get_args(hint)
    alternatives = [x for x in get_args(hint) if x is not type(None)] if optional else [hint]
    several = get_origin(alternatives[0]) is tuple
    elements = get_args(alternatives[0]) if several else tuple(alternatives)
    length = None if ... in elements else len(elements)
    if not elements:
        return None
    choices = get_args(elements[0]) if get_origin(elements[0]) is Literal else ()
    if choices and all(type(choice) is int for choice in choices):
        # The code that uses a number chooses among them, and says which.
        elements = (int, *elements[1:])
    kinds = set(elements) - {...}
    if len(alternatives) == len(kinds) == 1 and _is_read(elements[0]):
        return _Allowed(elements[0], several, length, optional)
    return None


def _is_read(element: Any) -> bool:
    """Whether an element is a type of `_TYPES`, or a Literal of texts."""
    is_choice = get_origin(element) is Literal and isinstance(get_args(element)[0], str)
    return element in _TYPES or is_choice


def plain(value: Any) -> Any:
    """A number of NumPy or JAX as Python's, a list or an array as a tuple, a path as a text.

    What is traced stays.
    """
    if isinstance(value, jax.core.Tracer):
        return value
    if isinstance(value, (np.generic, np.ndarray, jax.Array)):
        value = value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return tuple(map(plain, value)) if isinstance(value, (list, tuple)) else value


def _check_value(name: str, value: Any, allowed: _Allowed) -> None:
    """Raise ValueError unless the value has the type of its field."""
    if allowed.several:
        if not isinstance(value, tuple):
            fits = allowed.length in (None, 1) and _has_type(value, allowed.element)
            remedy = f": write ({value!r},)" if fits else ""
            raise ValueError(f"{name} must be a tuple, not {value!r}{remedy}.")
        if allowed.length not in (None, len(value)):
            raise ValueError(f"{name} must have {allowed.length} values, not {len(value)}.")
    for each in value if allowed.several else (value,):
        if get_origin(allowed.element) is Literal:
            check_choice(get_args(allowed.element), **{name: each})
        elif not _has_type(each, allowed.element):
            description = _TYPES[allowed.element][1]
            raise ValueError(f"{name} must be {description}, not {each!r}.")


def _has_type(value: Any, element: Any) -> bool:
    """Whether a value has the type of an element; for a Literal, whether it is a text."""
    if get_origin(element) is Literal:
        return isinstance(value, str)
    # A flag is a number in Python.
    return isinstance(value, _TYPES[element][0]) and isinstance(value, bool) == (element is bool)


def check_type(name: str, value: Any, hint: Any) -> None:
    """Raise ValueError for a flag, a number or a text of another type than the hint.

    A value of a Literal passes, because the code that uses it says which there are, and so does an
    array of JAX.
    """
    allowed = _read_hint(hint)
    if allowed is None or get_origin(allowed.element) is Literal or isinstance(value, jax.Array):
        return
    if value is not None or not allowed.optional:
        _check_value(name, plain(value), allowed)


def check_bound(**bounds: Any) -> None:
    """Raise ValueError for a number that is not above 0, or a flag. None and arrays pass."""
    for name, bound in bounds.items():
        if isinstance(bound, (numbers.Real, np.bool_)):
            positive = float(bound) > 0 and not isinstance(bound, (bool, np.bool_))
            check(positive, f"{name} must be a bound above 0, or None for none, not {bound}.")


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
                f"{name} must be floats, not {array.dtype}: data.pixels.to_floats converts images "
                "of 8 bits."
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
