"""Options of the commands that take a trained network with `--ckpt`, and how they open it."""

import dataclasses
from contextlib import AbstractContextManager
from typing import Literal, TypeVar

from ddpm_jax.cli import arguments
from ddpm_jax.devices import memory
from ddpm_jax.errors import check
from ddpm_jax.models import Model
from ddpm_jax.runs.sources import MISSING, RunSource, open_run
from ddpm_jax.runs.weights import DEFAULT_WEIGHTS


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Settings of every command that works on a run."""

    weights: str = DEFAULT_WEIGHTS
    """An average of the parameters by name, the parameters themselves as `raw`, or the length of one to rebuild."""
    checkpoint: int | None = None
    """Which saved step; None for the newest."""
    debug: bool = False
    """Show where an error was raised."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchedRunOptions(RunOptions):
    """Options of commands that compute images in batches."""

    batch_size: int = 64
    """Images computed at a time; changes no result."""
    seed: int = 0
    platform: Literal["cpu", "gpu", "tpu"] | None = None
    """Insist on a kind of device."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache folder."""

    def __post_init__(self):
        check(self.batch_size >= 1, f"--batch-size must be at least 1, not {self.batch_size}")
        check(0 <= self.seed < 2**32, f"--seed must be in [0, 2**32), not {self.seed}")

    def set_up_jax(self, num: int) -> None:
        """JAX's settings for work on `num` images; to be called before its first use."""
        arguments.set_up_jax(min(self.batch_size, num), self.platform, self.compilation_cache)

    def explain_oom(self, model: Model) -> AbstractContextManager[None]:
        """Memory that runs out in the block is a ValueError that names the batch and the setting to change."""
        height, width, channels = model.image_shape
        what = f"batches of {self.batch_size} pictures of {height}x{width}x{channels} in float32"
        return memory.explain_oom(what, "lower --batch-size")


Settings = TypeVar("Settings", bound=RunOptions)


def parse(kind: type[Settings], args: list[str], command: str) -> tuple[Settings, RunSource]:
    """The settings of a command, and the run that it is about; raises ValueError where there is none."""
    ckpt, args = arguments.take_option(args, "--ckpt")
    settings = arguments.parse(kind, args, None, f"{command} --ckpt DIR")
    check(ckpt is not None, MISSING)
    return settings, open_run(str(ckpt), settings.checkpoint)
