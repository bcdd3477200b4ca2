"""Settings as JSON: a nested object, in which "kind" names the class of a network or data source.

The name of a network or data source is the name of its module, on the command line and in JSON:
`--model conv_unet`, {"kind": "conv_unet", ...}.
"""

import dataclasses
import difflib
import importlib
import pkgutil
import typing
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import ddpm_jax.data
import ddpm_jax.models
from ddpm_jax.data import DataSource
from ddpm_jax.models import Model
from ddpm_jax.models.image_autoencoder import ImageAutoencoder

KINDS: dict[type, ModuleType] = {
    Model: ddpm_jax.models,
    ImageAutoencoder: ddpm_jax.models,
    DataSource: ddpm_jax.data,
}
"""{base class of settings: package with a module for each subclass}."""


def to_json(value: Any) -> Any:
    """Settings as plain JSON values."""
    if dataclasses.is_dataclass(value):
        fields = {
            field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
        for base in KINDS:
            if isinstance(value, base):
                return {"kind": _kind_of(value, base), **fields}
        return fields
    if isinstance(value, dict):
        return {str(name): to_json(item) for name, item in value.items()}
    return [to_json(item) for item in value] if isinstance(value, tuple) else value


def _kind_of(value: Any, base: type) -> str:
    kind = type(value).__module__.rpartition(".")[2]
    if settings_classes(base).get(kind) is not type(value):
        raise ValueError(
            f"{type(value).__name__} is not in {KINDS[base].__name__}, so JSON has no name for it: "
            "define it in a module of that package."
        )
    return kind


def find_kind(base: type, kind: Any, setting: str) -> type:
    """The settings class in the module `kind` of the package that KINDS gives for `base`.

    Raise ValueError with the valid names if there is none.
    """
    kinds = settings_classes(base)
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"Unknown {setting} {kind!r}: {nearest(str(kind), list(kinds))}.")
    return kinds[kind]


def from_json(cls: type, value: Any, path: str) -> Any:
    """Build an instance of the settings class `cls`, or of the subclass that "kind" names.

    `path` is the dotted name of the settings, for messages. The `FORMER_FIELDS` of a class are left
    out. Its `FORMER_VALUES` are those of settings that older files lack. Raise ValueError for
    unknown, missing or invalid settings.
    """
    value = _object(value, path)
    base = next((base for base in KINDS if issubclass(cls, base)), None)
    if base is not None:
        cls = find_kind(base, value.pop("kind", None), path)
    for name in getattr(cls, "FORMER_FIELDS", ()):
        value.pop(name, None)
    value = getattr(cls, "FORMER_VALUES", {}) | value
    fields = dataclasses.fields(cls)
    unknown = sorted(set(value) - {field.name for field in fields})
    if unknown:
        names = ", ".join(_dotted(path, name) for name in unknown)
        raise ValueError(f"unknown settings: {names}")
    # Both are dataclasses.MISSING for a field without a default.
    required = {field.name for field in fields if field.default is field.default_factory}
    missing = sorted(required - set(value))
    if missing:
        names = ", ".join(_dotted(path, name) for name in missing)
        raise ValueError(f"settings are missing: {names}")
    types = typing.get_type_hints(cls)
    values = {name: _value(types[name], item, _dotted(path, name)) for name, item in value.items()}
    try:
        return cls(**values)
    except TypeError as error:
        # A check in __post_init__ met a value of another type.
        raise ValueError(f"settings of {path or 'the config'} do not fit ({error})") from error


def _value(kind: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return from_json(typing.cast(type, kind), value, path)
    if typing.get_origin(kind) is Mapping:
        return _object(value, path)
    return tuple(_value(None, item, path) for item in value) if isinstance(value, list) else value


def _object(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{path} must be an object, not {str(value)[:80]}")
    return dict(value)


def _dotted(path: str, name: str) -> str:
    return f"{path}.{name}".strip(".")


def differences(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """The settings in which two values of `to_json` differ, as dotted names."""
    if not (isinstance(ours, dict) and isinstance(theirs, dict)):
        return [] if ours == theirs else [path]
    different: list[str] = []
    for name in sorted(set(ours) | set(theirs)):
        different += differences(ours.get(name), theirs.get(name), _dotted(path, name))
    return different


def settings_classes(base: type) -> dict[str, type]:
    """{module name: subclass of `base`} of the package that KINDS gives for `base`.

    Modules without such a class are left out.
    """
    package = KINDS[base]
    classes = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for cls in vars(module).values():
            is_settings = isinstance(cls, type) and issubclass(cls, base)
            if is_settings and cls.__module__ == module.__name__:
                classes[info.name] = cls
    return classes


def nearest(name: str, valid: Sequence[str]) -> str:
    """The valid names as "choose one of cifar10, digits", with the nearest to `name` first."""
    close = difflib.get_close_matches(name, valid, n=3)
    others = [other for other in valid if other not in close]
    return f"choose one of {', '.join([*close, *others])}"
