"""Shared options of the commands that read a trained network, and how `--ckpt` is resolved."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, TypeVar, cast

from ddpm_jax.cli import arguments
from ddpm_jax.config import Config
from ddpm_jax.devices import memory
from ddpm_jax.errors import check, check_seed
from ddpm_jax.latent_config import LatentConfig
from ddpm_jax.models import Model
from ddpm_jax.runs.saved_steps import Step
from ddpm_jax.runs.sources import MISSING, RunSource, open_run
from ddpm_jax.runs.weights import DEFAULT_WEIGHTS

OF_TRAINING = {
    ", or raise --data.max-corrupt-fraction": "",
    "raise --data.max-pixels, or ": "",
}
"""{remedy of an error while images are read: what replaces it in a command that lacks it}."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of every command that reads a run."""

    weights: str = DEFAULT_WEIGHTS
    """Average of the parameters by name, raw for none, or the length of an average to rebuild."""
    checkpoint: Step | None = None
    """Step of the checkpoint, or best for the best one that training measured; None for the
    newest."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchedRunOptions(RunOptions):
    """Options of every command that computes images in batches."""

    batch_size: int = 64
    """Images per batch. Does not change the result."""
    seed: int = 0
    """Seed of all random numbers, in [0, 2**32)."""
    platform: Literal["cpu", "gpu", "tpu"] | None = None
    """Kind of device to use. It is an error if there is none."""
    compilation_cache: bool = True
    """Cache compiled programs in the user's cache folder."""

    def __post_init__(self):
        check(self.batch_size >= 1, f"--batch-size must be at least 1, not {self.batch_size}.")
        check_seed(self.seed, "--seed", self.seed_bits)

    @property
    def seed_bits(self) -> int:
        """The number of bits of the largest seed."""
        return 32

    def set_up_jax(self, num_images: int) -> None:
        """Configure JAX for `num_images` images, before its first use of a device."""
        batch_size = min(self.batch_size, num_images)
        arguments.set_up_jax(batch_size, self.platform, self.compilation_cache)

    def explain_oom(self, model: Model) -> AbstractContextManager[None]:
        """Turn an out-of-memory error in the block into a ValueError that suggests --batch-size."""
        height, width, channels = model.image_shape
        workload = f"batches of {self.batch_size} images of {height}x{width}x{channels} in float32"
        return memory.explain_oom(workload, "lower --batch-size")


def image_config(run: RunSource) -> Config:
    """The config of a run on images. Raise ValueError for autoencoders and runs on latents."""
    config = run.config
    if not isinstance(config, Config) or isinstance(config, LatentConfig):
        raise ValueError(
            f"{run.folder} is the run of an autoencoder or on latents: give a run on images, or "
            "draw by sample.py and measure by python -m ddpm_jax.evaluate --samples."
        )
    return config


def named_step(args: Sequence[str]) -> Step | None:
    """The value of `--checkpoint` in the arguments of a command, which stays in them.

    The settings of a step give the defaults of other options, so it is opened before these are
    parsed.
    """
    step, _ = arguments.take_option(args, "--checkpoint")
    if step in (None, "None"):
        return None
    return int(step) if step.isdecimal() else cast("Step", step)


@contextmanager
def own_remedies(others: Mapping[str, str] | None = None) -> Iterator[None]:
    """Leave options of training, which the command lacks, out of the errors of the block.

    `others` are further texts of messages to replace, such as names of options.
    """
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
        for old, new in {**OF_TRAINING, **(others or {})}.items():
            message = message.replace(old, new)
        if message == str(error):
            raise
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(message) from error


Options = TypeVar("Options", bound=RunOptions)


def parse(kind: type[Options], args: list[str], command: str) -> tuple[Options, RunSource]:
    """Parse the options of a command and open the run of its `--ckpt`.

    Raise ValueError if `--ckpt` is missing, and FileNotFoundError or ValueError if it names no run.
    """
    ckpt, args = arguments.take_option(args, "--ckpt")
    options = arguments.parse(kind, args, None, f"{command} --ckpt DIR")
    check(ckpt is not None, MISSING)
    return options, open_run(str(ckpt), options.checkpoint)
