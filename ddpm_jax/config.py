"""A recipe: frozen dataclasses that say everything about a run, and their checks."""

import dataclasses
from typing import Literal

from ddpm_jax.data import Data, steps_per_epoch
from ddpm_jax.ema import LONGEST
from ddpm_jax.errors import check
from ddpm_jax.recipe import Recipe

PARAMETERS_A_PIXEL = 300  # of two cores, two devices were faster at 17 and 79 parameters a pixel, one at 1,130


def in_steps(every: int | None, every_epochs: int | None, steps_per_epoch: int) -> int | None:
    """A length or cadence in steps: `every` if given, else `every_epochs` epochs, else None."""
    return every if every is not None else None if every_epochs is None else every_epochs * steps_per_epoch


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
    max_skipped: int = 10
    """Updates in a row that are skipped, because loss or gradient is not finite, before something is done about it."""
    on_skipped: Literal["stop", "go_back"] = "stop"
    """What that is: end the run in one line, or go on with the weights of the newest checkpoint before them."""

    def __post_init__(self):
        for name in ("batch_size", "steps", "epochs", "accumulation", "max_skipped"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"training.{name} must be at least 1, not {value}")
        check(self.steps is not None or self.epochs is not None, "give training.steps or training.epochs")
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
class Parallel:
    """How the step is spread over devices and hosts; every way gives the same numbers to rounding."""

    route: Literal["pmap", "jit"] = "pmap"
    """Each device works on its share of the batch, or XLA is told how the arrays are split."""
    fsdp: int = 1
    """Devices over which parameters, averages and optimizer state are split; above 1 by the jit route."""
    cpu_devices: int | None = None
    """Virtual CPU devices of a host; None for the largest number that divides the batch, up to half its cores."""

    @property
    def way(self) -> str:
        """Such as "pmap", or "jit, state over 4 devices"."""
        return self.route if self.fsdp == 1 else f"jit, state over {self.fsdp} devices"

    def __post_init__(self):
        for name in ("fsdp", "cpu_devices"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"parallel.{name} must be at least 1, not {value}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """optax's Adam or AdamW, the learning rate over time, gradient clipping."""

    name: Literal["adam", "adamw"] = "adam"
    learning_rate: float = 2e-4
    """The highest rate."""
    decay: Literal["constant", "cosine", "epoch_cosine"] = "constant"
    """After the warm-up: stay, fall along a cosine over the whole run, or the same in one stair an epoch."""
    floor: float = 0.0
    """Where a cosine ends."""
    warmup_steps: int = 0
    """Steps of linear rise from 0."""
    weight_decay: float = 0.01
    """AdamW's; Adam has none."""
    clip_norm: float | None = None
    """Scale gradients down to this global norm; None for never."""

    def __post_init__(self):
        check(self.learning_rate > 0, f"optimizer.learning_rate must be positive, not {self.learning_rate}")
        check(0 <= self.floor <= self.learning_rate, f"optimizer.floor must be in [0, learning rate], not {self.floor}")
        check(self.warmup_steps >= 0, f"optimizer.warmup_steps must not be negative, not {self.warmup_steps}")
        check(self.weight_decay >= 0, f"optimizer.weight_decay must not be negative, not {self.weight_decay}")
        check(
            self.clip_norm is None or self.clip_norm > 0, f"optimizer.clip_norm must be positive, not {self.clip_norm}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ema:
    """The moving averages of the parameters; samples are drawn with that of `decay` unless another is asked for."""

    decay: float = 0.9999
    warmup: bool = True
    """Use min(decay, (1 + step) / (10 + step)), so that early averages forget their start."""
    others: tuple[float, ...] = ()
    """Further decays, each tracked at the same time."""
    power: tuple[float, ...] = ()
    """Lengths of power-function averages, such as 0.05 0.1, from which other lengths are rebuilt after training."""
    snapshots_every: int | None = None
    """Steps between the snapshots of these that are kept for good; None for a 64th of the run."""

    def __post_init__(self):
        for name, decay in [("decay", self.decay), *(("others", other) for other in self.others)]:
            check(0 <= decay < 1, f"ema.{name} must be in [0, 1), not {decay}")
        for name, values in (("others", self.others), ("power", self.power)):
            check(len(set(values)) == len(values), f"ema.{name} names an average twice: {values}")
        for length in self.power:
            check(0 < length <= LONGEST, f"ema.power must be above 0 and at most {LONGEST:.4f}, not {length}")
        check(self.snapshots_every is None or self.snapshots_every >= 1, "ema.snapshots_every must be at least 1")

    @property
    def decays(self) -> dict[str, float]:
        """The averages of constant decay by name: "ema", and such as "ema_0.999"."""
        return {"ema": self.decay} | {f"ema_{decay}": decay for decay in self.others}

    @property
    def tracks(self) -> dict[str, float]:
        """The lengths of the power-function averages by name, such as "power_0.05"."""
        return {f"power_{length}": length for length in self.power}


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
    on_failure: Literal["stop", "go_on"] = "stop"
    """What a save that fails does: end the run in one line, or leave it to the next save, said on stderr."""

    def __post_init__(self):
        for name in ("every", "every_epochs", "keep_last", "keep_every"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"checkpoint.{name} must be at least 1, not {value}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Log:
    """What is written while training."""

    every: int = 50
    """Steps between lines of metrics.jsonl and TensorBoard."""
    samples_every: int | None = None
    """Steps between sample grids; wins over samples_every_epochs."""
    samples_every_epochs: int | None = None
    """Epochs between sample grids; there is one at the end in any case."""
    samples: int = 64
    """Pictures in a sample grid; 0 for no grids."""
    sample_steps: int | None = 100
    """Steps of the walk for such a grid, if fewer than the recipe's sampling takes; None for just as many."""

    def __post_init__(self):
        check(self.every >= 1, f"log.every must be at least 1, not {self.every}")
        check(self.samples >= 0, f"log.samples must not be negative, not {self.samples}")
        for name in ("samples_every", "samples_every_epochs", "sample_steps"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"log.{name} must be at least 1, not {value}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Recipe):
    """Everything about a run: the same Config gives the same run."""

    data: Data
    training: Training
    parallel: Parallel = dataclasses.field(default_factory=Parallel)
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    ema: Ema = dataclasses.field(default_factory=Ema)
    checkpoint: Checkpoint = dataclasses.field(default_factory=Checkpoint)
    log: Log = dataclasses.field(default_factory=Log)

    @property
    def resize(self) -> Literal["crop", "squash"]:
        return self.data.resize

    def cores_each(self) -> int:
        """CPU cores for each device of a training step: 2 where gradients weigh more than pictures, 1 elsewhere.

        Each device adds up and applies all gradients, so that with more devices there is more of that to do.
        """
        pixels = self.training.micro_batch_size * self.model.image_size**2
        return 2 if self.model.parameter_count() > PARAMETERS_A_PIXEL * pixels else 1

    def steps_per_epoch(self, images: int) -> int:
        """Optimizer steps of an epoch over so many images."""
        return steps_per_epoch(images, self.training.batch_size)

    def total_steps(self, images: int) -> int:
        """The run's length in optimizer steps."""
        return in_steps(self.training.steps, self.training.epochs, self.steps_per_epoch(images)) or 0
