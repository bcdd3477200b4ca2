"""A recipe as plain JSON values, as it stands beside its checkpoints, and in what two recipes differ."""

import dataclasses
import importlib
from typing import Any

from ddpm_jax.config import Config
from ddpm_jax.errors import check

_PACKAGE = "ddpm_jax."


def to_json(value: Any) -> Any:
    """The config as plain JSON values; each dataclass carries its class as `type`, relative to this package."""
    if dataclasses.is_dataclass(value):
        fields = {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
        kind = type(value)
        return {"type": f"{kind.__module__}.{kind.__qualname__}".removeprefix(_PACKAGE), **fields}
    if isinstance(value, dict):
        return {str(name): to_json(item) for name, item in value.items()}
    return [to_json(item) for item in value] if isinstance(value, tuple) else value


def from_json(value: Any) -> Any:
    """The inverse of `to_json`. Only dataclasses of this package are made; raises ValueError for anything else."""
    if isinstance(value, list):
        return tuple(from_json(item) for item in value)
    if not isinstance(value, dict):
        return value
    fields = {name: from_json(item) for name, item in value.items() if name != "type"}
    if "type" not in value:
        return fields
    kind = _find_class(str(value["type"]))
    known = {field.name for field in dataclasses.fields(kind)}
    check(set(fields) <= known, f"unknown settings of {value['type']}: {', '.join(sorted(set(fields) - known))}")
    try:
        return kind(**fields)
    except TypeError as error:  # a setting without a default is missing
        raise ValueError(f"the settings of {value['type']} are not whole: {error}") from error


def _find_class(name: str) -> type:
    module, _, qualname = name.rpartition(".")
    try:
        kind = getattr(importlib.import_module(_PACKAGE + module), qualname)
    except (ImportError, AttributeError, ValueError):
        kind = None
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__module__ == _PACKAGE + module):
        raise ValueError(f"this checkpoint's config names {name!r}, which this version of ddpm_jax does not have")
    return kind


def differences(ours: Config, theirs: Config) -> list[str]:
    """The settings, as dotted names, in which two configs differ."""
    return _differences(to_json(ours), to_json(theirs), "")


def _differences(ours: Any, theirs: Any, path: str) -> list[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        names = sorted(set(ours) | set(theirs))
        return [
            d for name in names for d in _differences(ours.get(name), theirs.get(name), f"{path}.{name}".strip("."))
        ]
    return [] if ours == theirs else [path]
