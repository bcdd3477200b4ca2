"""Errors that a user can correct: one line with cause and remedy.

The checks of arrays read shapes alone, so they cost nothing in a compiled program.
"""

import functools
import numbers
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin, get_type_hints

import jax
import jax.numpy as jnp


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


def check_choices(settings: Any) -> None:
    """Raise ValueError for a setting of a dataclass that its type, a Literal, does not have.

    The type may also be a tuple of Literals, or a Literal or None. Python itself accepts any value.
    """
    kind: Any = type(settings)
    for name, (valid, is_optional) in _choices(kind).items():
        value = getattr(settings, name)
        if value is None and is_optional:
            continue
        for each in value if isinstance(value, tuple) else (value,):
            check_choice(valid, **{name: each})


@functools.cache
def _choices(kind: Any) -> dict[str, tuple[tuple[str, ...], bool]]:
    """The values of each field that `check_choices` checks, and whether it may be None."""
    found = {}
    for name, hint in get_type_hints(kind).items():
        for each in (hint, *get_args(hint)):
            if get_origin(each) is Literal:
                found[name] = get_args(each), type(None) in get_args(hint)
    return found


def check_ascending(**ranges: Any) -> None:
    """Raise ValueError for a pair of Python numbers that descends. None passes."""
    for name, pair in ranges.items():
        if pair is not None and all(isinstance(value, numbers.Real) for value in pair):
            low, high = pair
            check(low <= high, f"{name} must be in ascending order, not {low} {high}.")


def check_seed(seed: Any, name: str = "seed", bits: int = 32) -> None:
    """Raise ValueError for a Python integer outside [0, 2**bits). An array passes unread."""
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
