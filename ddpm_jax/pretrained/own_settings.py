"""ddpm_jax.json: settings that the diffusers layout has no place for.

In diffusers the number of steps and the guidance scale are arguments of a call, not all samplers
have a scheduler, and no file holds the names of classes, whether the last class stands for none, or
the unit of arrays. diffusers ignores this file.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ddpm_jax.data.values import LEVELS, Levels, ScaledValues
from ddpm_jax.errors import check
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.pretrained.hub import OWN_SETTINGS
from ddpm_jax.pretrained.untrusted_files import brief, inside, read_json, write_json
from ddpm_jax.settings_json import from_json, to_json

MOST_STEPS = 10_000
"""Number of steps above which a file is refused."""
FILE_OPTION = "statistics"
"""The option of samplers that names a file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnSettings:
    """The contents of ddpm_jax.json. What is None is left as the scheduler sets it."""

    sampling: Sampling | None = None
    """All settings of sampling. With them, the scheduler's, `steps` and `guidance_scale` are
    ignored."""
    steps: int | None = None
    """Number of steps of a sample."""
    guidance_scale: float | None = None
    label_dropout: float | None = None
    """That of a network whose last class stands for none, for guidance."""
    classes: tuple[str, ...] | None = None
    """The names of the classes, in the order of the labels."""
    values: Levels = LEVELS
    """The numbers that inputs and outputs of the network stand for."""

    def applied(self, sampling: Sampling) -> Sampling:
        """The sampling of a scheduler, with the settings given here."""
        if self.sampling is not None:
            return self.sampling
        given = {"steps": self.steps, "guidance_scale": self.guidance_scale}
        return sampling.override(**{name: x for name, x in given.items() if x is not None})


def write_own_settings(folder: Path, settings: OwnSettings) -> None:
    """Write ddpm_jax.json to a folder."""
    values = None if settings.values == LEVELS else settings.values
    write_json(folder / OWN_SETTINGS, to_json(settings) | {"values": to_json(values)})


def read_own_settings(folder: Path) -> OwnSettings:
    """Read ddpm_jax.json in a folder; all defaults if there is none. Raise ValueError."""
    path = folder / OWN_SETTINGS
    if not path.exists():
        return OwnSettings()
    content = read_json(inside(folder, path))
    known = {field.name: content.get(field.name) for field in dataclasses.fields(OwnSettings)}
    steps, scale, classes = (known[name] for name in ("steps", "guidance_scale", "classes"))
    _check(path, "steps", steps, type(steps) is int and 1 <= steps <= MOST_STEPS)
    dropout = known["label_dropout"]
    _check(path, "label_dropout", dropout, type(dropout) is float and 0 < dropout < 1)
    _check(path, "guidance_scale", scale, type(scale) in (int, float))
    is_list = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    _check(path, "classes", classes, is_list)
    values = known["values"]
    return OwnSettings(
        sampling=_read_sampling(path, known["sampling"]),
        steps=steps,
        guidance_scale=scale,
        label_dropout=dropout,
        classes=None if classes is None else tuple(classes),
        values=LEVELS if values is None else from_json(ScaledValues, values, f"{path}: values"),
    )


def _read_sampling(path: Path, value: Any) -> Sampling | None:
    if value is None:
        return None
    sampling = from_json(Sampling, value, f"{path}: sampling")
    steps = sampling.steps
    _check(path, "number of steps", steps, type(steps) is int and 1 <= steps <= MOST_STEPS)
    # A file from elsewhere must not choose which files are read.
    _check(path, "option", FILE_OPTION, FILE_OPTION not in sampling.options)
    return sampling


def _check(path: Path, name: str, value: Any, valid: bool) -> None:
    """Raise ValueError unless a setting of the file is valid or None."""
    check(value is None or valid, f"{path} has an unusable {name}, {brief(value)}: remove it.")
