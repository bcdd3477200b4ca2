"""A config as plain JSON values, as it is saved beside checkpoints, and in what two configs differ.

A network or a data source is named as on the command line, by the module it is in: {"kind": "unet", ...}.
"""

import dataclasses
import typing
from types import ModuleType
from typing import Any

import ddpm_jax.data
import ddpm_jax.models
from ddpm_jax.command_line import nearest, settings_classes
from ddpm_jax.config import Config
from ddpm_jax.data import Data
from ddpm_jax.errors import check
from ddpm_jax.models import Model

FORMAT = 2
"""The number of this layout; 0.1, which had no number, named Python classes."""
VERSION = "0.2.0"
KINDS: dict[type, ModuleType] = {Model: ddpm_jax.models, Data: ddpm_jax.data}
"""Settings of which there are several kinds, one in each module of a package."""


def config_to_json(config: Config) -> dict[str, Any]:
    """The whole config as plain JSON values, with the format and the version that wrote it."""
    return {"format": FORMAT, "ddpm_jax": VERSION, **to_json(config)}


def config_from_json(value: Any) -> Config:
    """The inverse of `config_to_json`; raises ValueError for another format or unknown settings."""
    check(isinstance(value, dict), "it does not hold a JSON object")
    written, version = value.get("format"), str(value.get("ddpm_jax", "0.1"))
    check(
        written == FORMAT,
        f"it was written by ddpm_jax {version[:20]}, whose format this version ({VERSION}) does not read",
    )
    return _settings(Config, {name: item for name, item in value.items() if name not in ("format", "ddpm_jax")}, "")


def to_json(value: Any) -> Any:
    """Settings as plain JSON values."""
    if dataclasses.is_dataclass(value):
        fields = {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
        several = isinstance(value, tuple(KINDS))
        return {"kind": type(value).__module__.rpartition(".")[2], **fields} if several else fields
    if isinstance(value, dict):
        return {str(name): to_json(item) for name, item in value.items()}
    return [to_json(item) for item in value] if isinstance(value, tuple) else value


def _settings(cls: type, value: Any, path: str) -> Any:
    """The dataclass `cls`, or where there are several kinds the one that the value names."""
    check(isinstance(value, dict), f"{path} must be an object, not {value!r}")
    value = dict(value)
    if cls in KINDS:
        kind, kinds = value.pop("kind", None), settings_classes(KINDS[cls])
        check(kind in kinds, f"unknown {path} {kind!r}; {nearest(str(kind), list(kinds))}")
        cls = kinds[kind]
    types = typing.get_type_hints(cls)
    known = {field.name for field in dataclasses.fields(cls)}
    unknown = sorted(set(value) - known)
    check(not unknown, f"unknown settings {', '.join(f'{path}.{name}'.strip('.') for name in unknown)}")
    try:
        return cls(**{name: _value(types[name], item, f"{path}.{name}".strip(".")) for name, item in value.items()})
    except TypeError as error:  # a setting without a default is missing
        raise ValueError(f"settings are missing ({error})") from error


def _value(kind: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _settings(typing.cast(type, kind), value, path)
    return tuple(_value(None, item, path) for item in value) if isinstance(value, list) else value


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
