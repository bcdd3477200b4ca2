"""The settings in a JSON file of diffusers: every key known, every value of its kind, the missing at their defaults."""

from collections.abc import Collection, Hashable, Mapping
from typing import Any

from ddpm_jax.errors import check

LARGEST_FLOAT, LARGEST_INT, LONGEST_WORD = 1e300, 2**63, 80
VERSION = "0.35.0"
"""The version of diffusers that what is written is said to be of."""


def validate(
    config: Mapping[str, Any],
    defaults: Mapping[str, Any],
    ignored: Collection[str],
    what: str,
    nullable: Collection[str] = (),
) -> dict[str, Any]:
    """The settings of a config of diffusers, those missing at their defaults; raises ValueError for an unknown key.

    `ignored` are keys that may be there too; `nullable` may be null, as may those whose default is null.
    """
    left_at_default = config.get("_use_default_values") or []
    check(
        isinstance(left_at_default, list),
        f"{what}: _use_default_values must be a list, not {repr(left_at_default)[:80]}",
    )
    unsaid = {key for key in left_at_default if isinstance(key, str)}
    said = {key: value for key, value in config.items() if key[:1] != "_" and key not in unsaid}
    unknown = sorted(set(said) - set(defaults) - set(ignored))
    check(not unknown, f"{what} says {repr(unknown)[:200]}, which is not understood")
    for key, value in said.items():
        default = defaults.get(key)
        fits = key in nullable if value is None and default is not None else _like(value, default)
        check(fits, f"{what}: {key} must be {_kind(default)}, not {repr(value)[:80]}")
        short = not isinstance(value, str) or (len(value) <= LONGEST_WORD and value.isprintable())
        check(short, f"{what}: {key} {repr(value)[:80]} is not a word that any model has")
    return {**defaults, **{key: value for key, value in said.items() if key in defaults}}


def _like(value: Any, default: Any) -> bool:
    """Whether a value is of the kind of a default, or the default says nothing of its kind, or null is a value."""
    if value is None or default is None:
        return True
    if isinstance(default, list):
        return isinstance(value, list) and (
            not default or (bool(value) and all(_like(x, default[0]) for x in value))
        )
    if isinstance(default, (bool, str)):
        return isinstance(value, type(default))
    if isinstance(default, int):
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST_INT
    finite = isinstance(value, (int, float)) and abs(value) <= LARGEST_FLOAT
    return value == default or (finite and not isinstance(value, bool))


def _kind(default: Any) -> str:
    if isinstance(default, list):
        return f"a list, such as {default}"
    return {bool: "true or false", int: "a whole number", float: "a number"}.get(
        type(default), "a string"
    )


def lookup(names: Mapping, value: Any, key: str) -> Any:
    """What of ours stands for a value of theirs; raises ValueError, with those there are, for another."""
    check(
        isinstance(value, Hashable) and value in names,
        f"{key} {repr(value)[:80]} is not understood; known are {', '.join(map(repr, names))}",
    )
    return names[value]
