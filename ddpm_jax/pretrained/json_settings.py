"""Validate the settings in a diffusers JSON file, and fill in the defaults of missing keys."""

from collections.abc import Collection, Hashable, Mapping
from typing import Any

MAX_FLOAT = 1e300
MAX_INT = 2**63
MAX_STRING_LENGTH = 80  # characters
VERSION = "0.35.0"
"""The version of diffusers that is written to JSON files."""


def validate(
    config: Mapping[str, Any],
    defaults: Mapping[str, Any],
    ignored: Collection[str],
    filename: str,
    nullable: Collection[str] = (),
) -> dict[str, Any]:
    """Check the settings of a diffusers config, and fill in the defaults of missing keys.

    A value must have the type of its default. Keys in `ignored` are allowed but dropped. Keys in
    `nullable`, and keys whose default is null, may be null. Raise ValueError for an unknown key
    or an invalid value; the messages name `filename`.
    """
    default_keys = config.get("_use_default_values") or []
    if not isinstance(default_keys, list):
        text = repr(default_keys)[:80]
        raise ValueError(f"{filename}: _use_default_values must be a list, not {text}.")
    left_out = {key for key in default_keys if isinstance(key, str)}
    given = {key: value for key, value in config.items() if key[:1] != "_" and key not in left_out}
    unknown = sorted(set(given) - set(defaults) - set(ignored))
    if unknown:
        raise ValueError(f"{filename} has unsupported keys: {repr(unknown)[:200]}.")
    for key, value in given.items():
        default = defaults.get(key)
        if value is None and default is not None:
            valid = key in nullable
        else:
            valid = _has_type_of(value, default)
        text = repr(value)[:80]
        if not valid:
            raise ValueError(f"{filename}: {key} must be {_type_name(default)}, not {text}.")
        if isinstance(value, str) and not _is_short_and_printable(value):
            limit = f"a printable string of at most {MAX_STRING_LENGTH} characters"
            raise ValueError(f"{filename}: {key} must be {limit}, not {text}.")
    return {**defaults, **{key: value for key, value in given.items() if key in defaults}}


def _is_short_and_printable(text: str) -> bool:
    return len(text) <= MAX_STRING_LENGTH and text.isprintable()


def _has_type_of(value: Any, default: Any) -> bool:
    """Whether a value has the type of a default. None matches any type, as value or as default."""
    if value is None or default is None:
        return True
    if isinstance(default, list):
        if not isinstance(value, list):
            return False
        # An empty default does not tell the type of the items.
        if not default:
            return True
        return bool(value) and all(_has_type_of(item, default[0]) for item in value)
    if isinstance(default, (bool, str)):
        return isinstance(value, type(default))
    if isinstance(default, int):
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < MAX_INT
    # The default may be infinite; other values may not.
    if value == default:
        return True
    finite = isinstance(value, (int, float)) and abs(value) <= MAX_FLOAT
    return finite and not isinstance(value, bool)


def _type_name(default: Any) -> str:
    if isinstance(default, list):
        return f"a list, such as {default}"
    names = {bool: "true or false", int: "a whole number", float: "a number"}
    return names.get(type(default), "a string")


def lookup(names: Mapping, value: Any, key: str) -> Any:
    """Our name for the value of a diffusers key. Raise ValueError if there is none."""
    if not isinstance(value, Hashable) or value not in names:
        text = repr(value)[:80]
        supported = ", ".join(map(repr, names))
        raise ValueError(f"{key} {text} is not supported: it must be one of {supported}.")
    return names[value]
