"""What the commands that work on a trained net share: `--ckpt`, what lies there with its recipe, and their settings."""

import dataclasses
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from ddpm_jax import command_line, memory, saved_steps, workdir
from ddpm_jax.config import Config
from ddpm_jax.errors import check
from ddpm_jax.models import Model, Params
from ddpm_jax.pretrained import folders
from ddpm_jax.recipe import Recipe

ANY = "a run such as runs/digits, or a folder or hub repository owner/name in the layout of diffusers"
MISSING = "--ckpt is missing: give the directory of a run, such as --ckpt runs/digits"


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnRun:
    """Settings of every command that works on a run."""

    weights: str = "ema"
    """An average of the parameters by name, the parameters themselves as `raw`, or the length of one to rebuild."""
    checkpoint: int | None = None
    """Which saved step; None for the newest."""
    debug: bool = False
    """Show where an error was raised."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InBatches(OnRun):
    """Settings of those that work on pictures, so many at once."""

    batch_size: int = 64
    """How many images are worked on at once; changes no result."""
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
        command_line.set_up_jax(min(self.batch_size, num), self.platform, self.compilation_cache)

    def shortage_named(self, model: Model) -> AbstractContextManager[None]:
        """Memory that runs out in the block is a ValueError that names the batch and the setting to change."""
        height, width, channels = model.image_shape
        what = f"batches of {self.batch_size} pictures of {height}x{width}x{channels} in float32"
        return memory.shortage_named(what, "lower --batch-size")


Settings = TypeVar("Settings", bound=OnRun)


class TrainedRun(NamedTuple):
    """A run's directory, one of its checkpoints, and its recipe."""

    folder: Path
    step: int
    config: Config

    def params(self, weights: str) -> Params:
        """The parameters, as `workdir.load_params` does."""
        return workdir.load_params(self.config, self.folder, self.step, weights)

    @property
    def recipe(self) -> Recipe:
        """The config, of which the recipe is a part."""
        return self.config

    @property
    def pictures(self) -> Path:
        """Where pictures go unless told otherwise."""
        return self.folder


class PretrainedNet(NamedTuple):
    """A folder or repository in the layout of diffusers and its recipe."""

    ckpt: str
    recipe: Recipe
    pictures: Path = Path()

    def params(self, weights: str) -> Params:
        """The parameters; raises ValueError for another name of weights than the default."""
        check(weights == OnRun.weights, "a net in the layout of diffusers has one set of weights: leave --weights out")
        return folders.read_params(self.ckpt, self.recipe)


def open_any(ckpt: str, step: int | None = None) -> TrainedRun | PretrainedNet:
    """The run at `ckpt`, as `open_run`, or else the net in the layout of diffusers, there or on the hub.

    Raises FileNotFoundError, ValueError or OSError.
    """
    path = Path(ckpt)
    if (path / saved_steps.FOLDER).is_dir():
        return open_run(ckpt, step)
    check(step is None, f"--checkpoint names a step of a run, which {ckpt} is not: leave it out")
    if path.is_dir() and not folders.is_one(path):
        raise FileNotFoundError(f"{ckpt} holds neither {saved_steps.FOLDER} nor {folders.INDEX}: give {ANY}")
    return PretrainedNet(ckpt, folders.read_recipe(folders.find(ckpt)))


def open_run(ckpt: str, step: int | None = None) -> TrainedRun:
    """The run at `ckpt`, at its newest checkpoint if no step is named."""
    folder, step = saved_steps.find(ckpt, step)
    return TrainedRun(folder, step, workdir.load_config(folder, step))


def parse(kind: type[Settings], args: list[str], command: str) -> tuple[Settings, TrainedRun]:
    """The settings of a command, and the run that it is about; raises ValueError where there is none."""
    ckpt, args = command_line.take_option(args, "--ckpt")
    settings = command_line.parse(kind, args, None, f"{command} --ckpt DIR")
    check(ckpt is not None, MISSING)
    return settings, open_run(str(ckpt), settings.checkpoint)
