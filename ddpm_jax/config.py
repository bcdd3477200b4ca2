"""A config: every setting of a run, its checks, and its form as JSON.

A network or a data source is named by the module it is in, on the command line and in JSON:
`--model conv_unet`, {"kind": "conv_unet", ...}.
"""

import dataclasses
import difflib
import importlib
import pkgutil
import typing
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, Literal

import optax

import ddpm_jax.data
import ddpm_jax.models
from ddpm_jax.data import DataSource
from ddpm_jax.data.batches import steps_per_epoch
from ddpm_jax.devices.parallel import Parallel
from ddpm_jax.errors import check
from ddpm_jax.generation.recipe import Recipe
from ddpm_jax.models import Model
from ddpm_jax.training.ema import Ema
from ddpm_jax.training.optimizer import Optimizer, make_optimizer
from ddpm_jax.version import VERSION

FORMAT = 3
"""The number of the JSON layout. Format 1, of version 0.1, had no number and named Python classes."""
KINDS: dict[type, ModuleType] = {Model: ddpm_jax.models, DataSource: ddpm_jax.data}
"""Settings of which there are several kinds, one in each module of a package."""

PARAMETERS_A_PIXEL = (
    300  # of two cores, two devices were faster at 17 and 79 parameters a pixel, one at 1,130
)


def cadence_in_steps(
    every: int | None, every_epochs: int | None, steps_per_epoch: int
) -> int | None:
    """A length or cadence in steps: `every` if given, else `every_epochs` epochs, else None."""
    return (
        every
        if every is not None
        else None
        if every_epochs is None
        else every_epochs * steps_per_epoch
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """How long, with what batches, in what precision, on which devices."""

    batch_size: int = 128
    """Images of one optimizer step, over all devices and accumulated micro-batches."""
    steps: int | None = None
    """Length in optimizer steps; wins over epochs."""
    epochs: int | None = None
    """Length in epochs of ceil(images / batch size) steps."""
    accumulation: int = 1
    """Micro-batches whose gradients make one optimizer step."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What the network computes in; parameters stay float32, float16 gets a dynamic loss scale."""
    seed: int = 0
    init_from: str | None = None
    """The net whose weights training starts from, as `--init-from` says; None for fresh ones."""
    skip_patience: int = 10
    """Updates in a row that are skipped, because loss or gradient is not finite, before something is done about it."""
    on_patience: Literal["stop", "rollback"] = "stop"
    """What that is: end the run in one line, or go on with the weights of the newest checkpoint before them."""

    def __post_init__(self):
        for name in ("batch_size", "steps", "epochs", "accumulation", "skip_patience"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"training.{name} must be at least 1, not {value}")
        check(
            self.steps is not None or self.epochs is not None,
            "give training.steps or training.epochs",
        )
        check(
            self.batch_size % self.accumulation == 0,
            f"a batch of {self.batch_size} does not divide into {self.accumulation} micro-batches: change either",
        )
        check(0 <= self.seed < 2**32, f"training.seed must be in [0, 2**32), not {self.seed}")

    @property
    def micro_batch_size(self) -> int:
        """Images of one call of the training step."""
        return self.batch_size // self.accumulation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """When the state is saved, and which saves are kept. The last step is always saved."""

    every: int | None = None
    """Cadence in steps; wins over every_epochs."""
    every_epochs: int | None = 1
    """Cadence in epochs."""
    keep_last: int = 2
    """How many of the newest are kept; while updates are skipped, also the newest from before that began."""
    keep_every: int | None = None
    """Steps divisible by this are kept for good."""
    wait: bool = True
    """Count no step as done before the save ahead of it is whole on disk: a kill loses one interval at most."""
    on_failure: Literal["stop", "continue"] = "stop"
    """What a save that fails does: end the run in one line, or leave it to the next save, said on stderr."""

    def __post_init__(self):
        for name in ("every", "every_epochs", "keep_last", "keep_every"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"checkpoint.{name} must be at least 1, not {value}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Log:
    """How often training writes metrics and sample grids."""

    every: int = 50
    """Steps between lines of metrics.jsonl and TensorBoard."""
    samples_every: int | None = None
    """Steps between sample grids; wins over samples_every_epochs."""
    samples_every_epochs: int | None = None
    """Epochs between sample grids; there is one at the end in any case."""
    samples: int = 64
    """Pictures in a sample grid; 0 for no grids."""
    sample_steps: int | None = 100
    """Most sampling steps for a sample grid; None for as many as the recipe's sampling takes."""

    def __post_init__(self):
        check(self.every >= 1, f"log.every must be at least 1, not {self.every}")
        check(self.samples >= 0, f"log.samples must not be negative, not {self.samples}")
        for name in ("samples_every", "samples_every_epochs", "sample_steps"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"log.{name} must be at least 1, not {value}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Recipe):
    """Everything about a run: the same Config gives the same run."""

    data: DataSource
    training: Training
    parallel: Parallel = dataclasses.field(default_factory=Parallel)
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    ema: Ema = dataclasses.field(default_factory=Ema)
    checkpoint: Checkpoint = dataclasses.field(default_factory=Checkpoint)
    log: Log = dataclasses.field(default_factory=Log)

    @property
    def resize(self) -> Literal["crop", "squash"]:
        return self.data.resize

    def cores_per_device(self) -> int:
        """CPU cores for each device of a training step: 2 where gradients weigh more than pictures, 1 elsewhere.

        Each device adds up and applies all gradients, so that with more devices there is more of that to do.
        """
        pixels = self.training.micro_batch_size * self.model.image_size**2
        return 2 if self.model.parameter_count() > PARAMETERS_A_PIXEL * pixels else 1

    def steps_per_epoch(self, images: int) -> int:
        """Optimizer steps of an epoch over so many images."""
        return steps_per_epoch(images, self.training.batch_size)

    def make_optimizer(self, images: int) -> optax.GradientTransformation:
        """The optimizer of a run over this number of images."""
        importance = self.objective.timestep_sampling == "importance"
        return make_optimizer(
            self.optimizer,
            self.total_steps(images),
            self.steps_per_epoch(images),
            dtype=self.training.dtype,
            accumulation=self.training.accumulation,
            importance_timesteps=self.objective.timesteps if importance else None,
        )

    def total_steps(self, images: int) -> int:
        """The run's length in optimizer steps."""
        return (
            cadence_in_steps(
                self.training.steps, self.training.epochs, self.steps_per_epoch(images)
            )
            or 0
        )


def config_to_json(config: Config) -> dict[str, Any]:
    """The whole config as plain JSON values, with the format and the version that wrote it."""
    return {"format": FORMAT, "ddpm_jax": VERSION, **to_json(config)}


def config_from_json(value: Any) -> Config:
    """The inverse of `config_to_json`; raises ValueError for another format or unknown settings."""
    if not isinstance(value, dict):
        raise ValueError("it does not hold a JSON object")
    settings = dict(value)
    written = settings.pop("format", None)
    version = str(settings.pop("ddpm_jax", "0.1"))[:20]
    if written is None and "type" not in settings:
        raise ValueError("it does not say its format")
    if written != FORMAT:
        raise ValueError(
            f"ddpm_jax {version} wrote it in format {str(written or 1)[:20]}, "
            f"and ddpm_jax {VERSION} reads only format {FORMAT}"
        )
    return _from_json(Config, settings, "")


def to_json(value: Any) -> Any:
    """Settings as plain JSON values."""
    if dataclasses.is_dataclass(value):
        fields = {
            field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
        for base, package in KINDS.items():
            if isinstance(value, base):
                return {"kind": _kind_of(value, package), **fields}
        return fields
    if isinstance(value, dict):
        return {str(name): to_json(item) for name, item in value.items()}
    return [to_json(item) for item in value] if isinstance(value, tuple) else value


def _kind_of(value: Any, package: ModuleType) -> str:
    kind = type(value).__module__.rpartition(".")[2]
    if settings_classes(package).get(kind) is not type(value):
        raise ValueError(
            f"{type(value).__name__} is not in {package.__name__}: only what is there has a name in JSON"
        )
    return kind


def find_kind(base: type, kind: Any, what: str) -> type:
    """The settings class that a module of this name has; raises ValueError with the valid names."""
    kinds = settings_classes(KINDS[base])
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"unknown {what} {kind!r}; {nearest(str(kind), list(kinds))}")
    return kinds[kind]


def _from_json(cls: type, value: Any, path: str) -> Any:
    """An instance of the settings class `cls`, or of the kind of it that the value names."""
    value = _object(value, path)
    if cls in KINDS:
        cls = find_kind(cls, value.pop("kind", None), path)
    types = typing.get_type_hints(cls)
    paths = {name: f"{path}.{name}".strip(".") for name in value}
    unknown = sorted(set(value) - {field.name for field in dataclasses.fields(cls)})
    if unknown:
        raise ValueError(f"unknown settings: {', '.join(paths[name] for name in unknown)}")
    needed = {
        field.name for field in dataclasses.fields(cls) if field.default is field.default_factory
    }
    missing = sorted(needed - set(value))
    if missing:
        raise ValueError(
            f"settings are missing: {', '.join(f'{path}.{name}'.strip('.') for name in missing)}"
        )
    values = {name: _value(types[name], item, paths[name]) for name, item in value.items()}
    try:
        return cls(**values)
    except TypeError as error:  # a value of another type
        raise ValueError(f"settings of {path or 'the config'} do not fit ({error})") from error


def _value(kind: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _from_json(typing.cast(type, kind), value, path)
    if typing.get_origin(kind) is Mapping:
        return _object(value, path)
    return tuple(_value(None, item, path) for item in value) if isinstance(value, list) else value


def _object(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{path} must be an object, not {str(value)[:80]}")
    return dict(value)


def differences(ours: Config, theirs: Config) -> list[str]:
    """The settings, as dotted names, in which two configs differ."""
    return _differences(to_json(ours), to_json(theirs), "")


def _differences(ours: Any, theirs: Any, path: str) -> list[str]:
    if not (isinstance(ours, dict) and isinstance(theirs, dict)):
        return [] if ours == theirs else [path]
    names = sorted(set(ours) | set(theirs))
    paths = {name: f"{path}.{name}".strip(".") for name in names}
    return [
        found
        for name in names
        for found in _differences(ours.get(name), theirs.get(name), paths[name])
    ]


def settings_classes(package: ModuleType) -> dict[str, type]:
    """The settings class of each module of a package that has one, by the module's name."""
    found = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for cls in vars(module).values():
            settings = isinstance(cls, type) and issubclass(cls, tuple(KINDS))
            if settings and cls.__module__ == module.__name__:
                found[info.name] = cls
    return found


def nearest(name: str, valid: Sequence[str]) -> str:
    """Such as "there are: cifar10, digits", the valid names, those nearest to `name` first."""
    close = difflib.get_close_matches(name, valid, n=3)
    others = [other for other in valid if other not in close]
    return f"there are: {', '.join([*close, *others])}"
