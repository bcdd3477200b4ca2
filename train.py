"""Trains a recipe: config -> data -> state -> loop.

    python train.py --config digits
    python train.py --config cifar10 --workdir runs/a --optimizer.learning-rate 1e-4 --training.steps 2000

The same command again resumes where it stopped. `--config NAME --help` lists every setting.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ddpm_jax import command_line
from ddpm_jax.config import Config

CONFIGS = Path(__file__).parent / "configs"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A run of one recipe."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    workdir: Path
    """Where checkpoints, samples and logs go."""
    overwrite: bool = False
    """Throw away the run that is in the workdir and start afresh."""
    dry_run: bool = False
    """Print the resolved recipe, its data, devices and parameter count, and stop; needs no data on disk."""
    preview: bool = False
    """Also leave pictures of the data and of the noising process."""
    platform: Literal["cpu", "gpu", "tpu"] | None = None
    """Insist on a kind of device."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache folder."""
    debug: bool = False
    """Show where an error was raised."""


def main(args: list[str]) -> None:
    """Parses, then trains."""
    with command_line.one_line_errors("--debug" in args):
        name, rest = command_line.take_option(args, "--config")
        if name is None:
            listing = f"usage: python train.py --config NAME [settings]\n\nrecipes:\n{command_line.list_recipes(CONFIGS)}"
            wants_help = bool({"-h", "--help"} & set(rest))
            print(f"{listing}\n\n`--config NAME --help` lists every setting.", file=None if wants_help else sys.stderr)
            raise SystemExit(0 if wants_help else 2)
        default = Run(config=command_line.load_recipe(name, CONFIGS), workdir=Path("runs") / name)
        run = command_line.parse(Run, rest, default, prog=f"train.py --config {name}")
        if run.compilation_cache:
            command_line.use_compilation_cache()
        session = prepare(run)
    if session is not None:
        loop(*session)


def prepare(run: Run):
    ...


if __name__ == "__main__":
    main(sys.argv[1:])
