"""Validate the settings in a diffusers JSON file, and fill in the defaults of missing keys."""

from collections.abc import Collection, Hashable, Mapping
from typing import Any

from ddpm_jax.pretrained.untrusted_files import is_printable

MAX_FLOAT = 1e300
MAX_INT = 2**63
MAX_STRING_LENGTH = 80  # characters
MAX_NUMBER = 10**6
MAX_LEVELS = 16
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
        if isinstance(value, str) and not is_printable(value, MAX_STRING_LENGTH):
            limit = f"a printable string of at most {MAX_STRING_LENGTH} characters"
            raise ValueError(f"{filename}: {key} must be {limit}, not {text}.")
    return {**defaults, **{key: value for key, value in given.items() if key in defaults}}


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
        return bool(value) and all(
            item is not None and _has_type_of(item, default[0]) for item in value
        )
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


def check_class(config: Mapping[str, Any], expected: str, filename: str) -> None:
    """Raise ValueError if the config names another class than the expected one."""
    name = config.get("_class_name", expected)
    if name != expected:
        raise ValueError(f"{filename} describes a {name}, not a {expected}: it is not read.")


def float_keys(defaults: Mapping[str, Any]) -> list[str]:
    """The keys whose values are floats."""
    return [key for key, default in defaults.items() if isinstance(default, float)]


def check_limits(
    settings: Mapping[str, Any],
    defaults: Mapping[str, Any],
    largest: Mapping[str, int],
    filename: str,
) -> None:
    """Raise ValueError for a network that is too large to be real, or not a network at all.

    Each key of `largest` holds whole numbers from 1 to its limit, or null. Without limits a hostile
    config could take unlimited memory or time before any weight is read.
    """
    for key, maximum in largest.items():
        setting = settings[key]
        for value in setting if isinstance(setting, list) else [setting]:
            if value is None or (isinstance(value, int) and 1 <= value <= maximum):
                continue
            limits = f"a whole number from 1 to {maximum}"
            raise ValueError(f"{filename}: {key} {str(setting)[:80]} is not {limits}.")
    for key in float_keys(defaults):
        if not abs(settings[key]) <= MAX_NUMBER:
            limits = f"between -{MAX_NUMBER} and {MAX_NUMBER}"
            raise ValueError(f"{filename}: {key} {str(settings[key])[:80]} is not {limits}.")
    levels = len(settings.get("block_out_channels", ()))
    if levels > MAX_LEVELS:
        limit = f"at most {MAX_LEVELS} are supported"
        raise ValueError(f"{filename}: block_out_channels has {levels} levels: {limit}.")


def check_fixed(
    settings: Mapping[str, Any],
    fixed: Mapping[str, Any],
    reasons: Mapping[str, str],
    filename: str,
) -> None:
    """Raise ValueError if a setting differs from the only value that is supported.

    `reasons` says of some keys what their other values mean.
    """
    for key, only in fixed.items():
        if settings[key] != only:
            reason = reasons.get(key, f"only {only!r} is supported")
            raise ValueError(f"{filename}: {key} is {str(settings[key])[:80]!r}: {reason}.")


def lookup(names: Mapping, value: Any, key: str) -> Any:
    """Our name for the value of a diffusers key. Raise ValueError if there is none."""
    if not isinstance(value, Hashable) or value not in names:
        text = repr(value)[:80]
        supported = ", ".join(map(repr, names))
        raise ValueError(f"{key} {text} is not supported: it must be one of {supported}.")
    return names[value]
