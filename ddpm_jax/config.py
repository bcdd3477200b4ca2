"""The config of a run: all settings, their checks, and their form in JSON."""

import copy
import dataclasses
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import optax
import tyro

from ddpm_jax import settings_json
from ddpm_jax.data import DataSource, ImageSet
from ddpm_jax.data.batches import steps_per_epoch
from ddpm_jax.data.conditions import load_conditioned
from ddpm_jax.data.pixels import check_shown
from ddpm_jax.data.values import Scales
from ddpm_jax.devices.parallel import Parallel
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.errors import check, check_at_least, check_seed, check_settings
from ddpm_jax.generation.conditions import check_condition_settings
from ddpm_jax.generation.model_spec import ModelSpec
from ddpm_jax.models import ImageNetwork, Model
from ddpm_jax.settings_json import from_json, to_json
from ddpm_jax.training.ema import Ema
from ddpm_jax.training.lora import Lora
from ddpm_jax.training.optimizer import Optimizer, make_optimizer
from ddpm_jax.version import VERSION

CONFIG_FORMAT = 3
"""The number of the JSON layout. Format 1 (version 0.1) had no number and named Python classes."""
# On two cores, two devices trained 1.13 times as fast as one at 17 parameters per pixel of a batch
# (mnist), as fast at 1,130 (butterflies), and 0.85 times as fast at 4,360 (cifar10)
# (`python benchmarks/bench.py --rows devices`).
PARAMETERS_PER_PIXEL = 300


# A save takes seconds, in which training waits. An epoch of a small data set is shorter than that.
MIN_STEPS_BETWEEN_SAVES = 250


def multiple_of(steps: int, at_least: int) -> int:
    """The smallest multiple of `steps` that is at least `at_least`."""
    return steps * -(-at_least // steps)


def cadence_in_steps(
    every: int | None, every_epochs: int | None, steps_per_epoch: int, at_least: int
) -> int | None:
    """A cadence in steps: `every` if given, else `every_epochs` epochs, else None.

    Epochs of fewer steps than `at_least` are multiplied until they are enough.
    """
    if every is not None or every_epochs is None:
        return every
    return multiple_of(every_epochs * steps_per_epoch, at_least)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """Length, batches, precision, seed and initial weights of a run, and what ends it early."""

    batch_size: int = 128
    """Images per optimizer step, over all devices and accumulated micro-batches."""
    steps: int | None = None
    """Length in optimizer steps; overrides epochs."""
    epochs: int | None = None
    """Length in epochs of ceil(images / batch size) steps."""
    accumulation: int = 1
    """Micro-batches whose gradients are averaged for one optimizer step."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Compute dtype. Parameters stay float32; float16 adds a dynamic loss scale."""
    seed: int = 0
    """Seed of initial parameters, image order, noise and dropout, in [0, 2**32)."""
    init_from: Annotated[str | None, tyro.conf.Suppress] = None
    """Origin of the initial weights, set by --init-from; None for random initial weights."""
    skip_patience: int = 10
    """Consecutive updates skipped for a non-finite loss or gradient before on_patience applies.
    They are counted at every record (log.every); a run that has recovered by then goes on."""
    on_patience: Literal["stop", "rollback"] = "stop"
    """stop ends the run with an error; rollback returns to the checkpoint before those updates."""

    def __post_init__(self):
        check_settings(self, "training.")
        names = "batch_size steps epochs accumulation skip_patience".split()
        check_at_least(1, **{f"training.{name}": getattr(self, name) for name in names})
        check(
            self.steps is not None or self.epochs is not None,
            "The length of training is missing: give training.steps or training.epochs.",
        )
        check(
            self.batch_size % self.accumulation == 0,
            f"A batch of {self.batch_size} does not divide into {self.accumulation} micro-batches: "
            "change training.batch_size or training.accumulation.",
        )
        check_seed(self.seed, "training.seed")

    @property
    def micro_batch_size(self) -> int:
        """Images per call of the training step."""
        return self.batch_size // self.accumulation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """When the state is saved and which checkpoints are kept. The last step is always saved."""

    every: int | None = None
    """Steps between checkpoints; overrides every_epochs."""
    every_epochs: int | None = 1
    """Epochs between checkpoints; a multiple of them if they are fewer than 250 steps."""
    keep_last: int = 2
    """Number of newest checkpoints to keep, besides the best one that was measured, and one to roll
    back to while updates are skipped."""
    keep_every: int | None = None
    """Keep every checkpoint whose step is divisible by this."""
    wait: bool = True
    """Finish a save before the next step counts as done, so a kill loses at most one interval."""
    on_failure: Literal["stop", "continue"] = "stop"
    """After a failed save, stop the run with an error, or warn on stderr and continue."""

    def __post_init__(self):
        check_settings(self, "checkpoint.")
        names = "every every_epochs keep_last keep_every".split()
        check_at_least(1, **{f"checkpoint.{name}": getattr(self, name) for name in names})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Log:
    """How often training writes metrics and sample grids."""

    every: int = 50
    """Steps between records in metrics.jsonl and TensorBoard."""
    samples_every: int | None = None
    """Steps between sample grids; overrides samples_every_epochs."""
    samples_every_epochs: int | None = None
    """Epochs between sample grids, or a multiple of them if they are fewer steps than log.every.
    The last step always draws a grid."""
    samples: int = 64
    """Images in a sample grid; 0 for no grids."""
    channels: tuple[int, ...] = ()
    """Channels of arrays that pictures show: one in grey, or three as red, green and blue. By
    default all, in false colours unless they are one or three."""
    sample_steps: int | None = 100
    """Maximum number of sampling steps for a grid, and for evaluation.every; None for the number in
    the recipe's sampling."""

    def __post_init__(self):
        check_settings(self, "log.")
        check_at_least(0, **{"log.samples": self.samples})
        names = "every samples_every samples_every_epochs sample_steps".split()
        check_at_least(1, **{f"log.{name}": getattr(self, name) for name in names})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How often training compares samples with training images. `--checkpoint best` is the best."""

    every: int | None = None
    """Steps between evaluations, each of which saves a checkpoint; None for no evaluation."""
    num: int = 500
    """Number of samples to draw, and of training images to compare them with."""
    features: str = "pixels"
    """Vectors in which images are compared: a module of ddpm_jax/evaluation/features."""

    def __post_init__(self):
        check_settings(self, "evaluation.")
        check_at_least(1, **{"evaluation.every": self.every})
        check_at_least(4, **{"evaluation.num": self.num})


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The settings of any run, whatever its network learns. Equal configs give equal runs."""

    FLAGS: ClassVar = "--"
    """The beginning of the flags of `training` and `optimizer` on the command line."""

    model: ImageNetwork
    data: DataSource
    training: Training
    parallel: Parallel = dataclasses.field(default_factory=Parallel)
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    ema: Ema = dataclasses.field(default_factory=Ema)
    lora: Lora = dataclasses.field(default_factory=Lora)
    checkpoint: Checkpoint = dataclasses.field(default_factory=Checkpoint)
    log: Log = dataclasses.field(default_factory=Log)

    @property
    def importance_timesteps(self) -> int | None:
        """The number of timesteps whose losses set how often each is drawn; None for no such."""
        return None

    @property
    def micro_batch_sizes(self) -> tuple[int, ...]:
        """The batch sizes that the devices must divide."""
        return (self.training.micro_batch_size,)

    def load_images(self, scales: Scales | None = None) -> ImageSet:
        """Load the images of the data in the network's size, as `load_conditioned` does."""
        size = self.model.image_size, self.model.channels
        return load_conditioned(self.data, *size, scales)

    def cores_per_device(self) -> int:
        """The number of CPU cores per virtual device in training: 2 for large networks, else 1.

        Every device all-reduces and applies the whole gradient. Above PARAMETERS_PER_PIXEL this
        costs at least the time that a second device saves.
        """
        height, width, _ = self.model.image_shape
        pixels = self.training.micro_batch_size * height * width
        return 2 if self.model.parameter_count() > PARAMETERS_PER_PIXEL * pixels else 1

    def steps_per_epoch(self, num_images: int) -> int:
        """Optimizer steps per epoch over `num_images` images."""
        return steps_per_epoch(num_images, self.training.batch_size)

    def make_optimizer(self, num_images: int) -> optax.GradientTransformation:
        """Make the optimizer of a run over `num_images` images."""
        return make_optimizer(
            self.optimizer,
            self.total_steps(num_images),
            self.steps_per_epoch(num_images),
            dtype=self.training.dtype,
            accumulation=self.training.accumulation,
            importance_timesteps=self.importance_timesteps,
        )

    def total_steps(self, num_images: int) -> int:
        """The length of a run over `num_images` images in optimizer steps."""
        if self.training.steps is not None:
            return self.training.steps
        return (self.training.epochs or 0) * self.steps_per_epoch(num_images)

    def steps_between_saves(self, num_images: int) -> int | None:
        """The steps between checkpoints of a run over `num_images` images."""
        return cadence_in_steps(
            self.checkpoint.every,
            self.checkpoint.every_epochs,
            self.steps_per_epoch(num_images),
            MIN_STEPS_BETWEEN_SAVES,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RunConfig, ModelSpec):
    """All settings of a run of a network that denoises images."""

    model: Model
    evaluation: Evaluation = dataclasses.field(default_factory=Evaluation)

    def __post_init__(self):
        super().__post_init__()
        channels = self.model.channels
        check(
            channels in (1, 3) or self.has_autoencoder or self.data.takes_any_channels,
            f"Image files are read as grey or RGB: set model.channels to 1 or 3, not {channels}, "
            "or give --data arrays.",
        )
        check_condition_settings(self.model, self.data)
        check_time_embedding(self.model, self.objective)
        check_shown(self.log.channels, channels, "log.channels")
        clips = self.sampling.clip_x0 or self.sampling.dynamic_threshold is not None
        check(
            not clips or (self.data.is_bounded and not self.has_autoencoder),
            "Latents, and values scaled by their deviation, exceed [-1, 1], to which sampling "
            "clips: set clip_x0 to False (--no-clip-x0, or --sampling.no-clip-x0 of train.py), and "
            "leave out dynamic_threshold.",
        )

    @property
    def resize(self) -> Literal["crop", "squash"]:
        return self.data.resize

    @property
    def importance_timesteps(self) -> int | None:
        is_importance = self.objective.timestep_sampling == "importance"
        return self.objective.timesteps if is_importance else None


C = TypeVar("C", bound=RunConfig)


def with_unchecked(config: C, **parts: Any) -> C:
    """The config with other parts, which are not yet checked together.

    The command line changes such a config further. It is checked when it is parsed.
    """
    changed = copy.copy(config)
    for name, part in parts.items():
        object.__setattr__(changed, name, part)
    return changed


def check_time_embedding(model: Model, objective: Objective) -> None:
    """Raise ValueError if a network's embedding of t is not defined for each t of the objective."""
    check(
        getattr(model, "time_embedding", None) != "fourier",
        "model.time_embedding fourier takes the logarithm of t, which starts at 0: choose another.",
    )
    known = getattr(model, "timesteps", None)
    check(
        known is None or known >= objective.timesteps,
        f"The network embeds {known} timesteps, but the objective has {objective.timesteps}: raise "
        "model.timesteps.",
    )
    check(
        known is None or objective.timestep_sampling != "lognormal",
        "A learned time embedding needs whole timesteps: set objective.timestep_sampling to "
        "uniform or importance.",
    )


def config_to_json(config: RunConfig) -> dict[str, Any]:
    """The config as plain JSON values, with the format and the version that writes it."""
    return {"format": CONFIG_FORMAT, "ddpm_jax": VERSION, **to_json(config)}


def config_from_json(value: Any, kind: type[RunConfig] = Config) -> RunConfig:
    """Read the config of a kind that `config_to_json` wrote.

    Raise ValueError for another format, and for unknown, missing or invalid settings. Messages
    about the JSON itself begin in lower case, because the caller puts the file's name before them.
    """
    if not isinstance(value, dict):
        raise ValueError("it does not hold a JSON object")
    settings = dict(value)
    written = settings.pop("format", None)
    version = str(settings.pop("ddpm_jax", "0.1"))[:20]
    if written is None and "type" not in settings:
        raise ValueError("it does not state its format")
    if written != CONFIG_FORMAT:
        raise ValueError(
            f"ddpm_jax {version} wrote it in format {str(written or 1)[:20]}, "
            f"and ddpm_jax {VERSION} reads only format {CONFIG_FORMAT}"
        )
    return from_json(kind, settings, "")


def differences(ours: RunConfig, theirs: RunConfig) -> list[str]:
    """The settings in which two configs differ, as dotted names."""
    return settings_json.differences(to_json(ours), to_json(theirs))
