"""Draws samples from a run: checkpoint -> sampler -> pictures.

    python sample.py --ckpt runs/digits --num 64 --steps 100 --out samples.png

Everything but --ckpt has a default from the run's recipe. `--ckpt DIR --help` lists every setting.
"""

import dataclasses
import sys
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from ddpm_jax import checkpoint, command_line, pictures, samplers, workdir
from ddpm_jax.config import Config, check
from ddpm_jax.diffusion import Sampling
from ddpm_jax.generation import chunk_count, generate
from ddpm_jax.grids import Spacing
from ddpm_jax.models import Params

PROGRESS_PARTS, GIF_FRAMES = 20, 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draw:
    """What to draw; `--ckpt DIR` names the run and `--sampler NAME` the algorithm."""

    num: int = 64
    """How many pictures."""
    batch_size: int = 64
    """How many are drawn at once; changes no picture."""
    steps: int | None = None
    """Steps of the walk, at most T; None for all T."""
    spacing: Spacing = "trailing"
    """Which timesteps are walked when they are fewer than T."""
    clip_x0: bool = True
    """Limit the estimate of clean data to [-1, 1] at every step."""
    seed: int = 0
    weights: Literal["ema", "raw"] = "ema"
    """The moving average of the parameters, or the parameters themselves."""
    out: tuple[Path, ...] = ()
    """Files: X.png a grid, X.npz uint8 NHWC under `images`, X.gif the denoising path, a folder one PNG each."""
    trajectory: bool = False
    """Also write the denoising path of ten samples as X_chain.png."""
    checkpoint: int | None = None
    """Which saved step; None for the newest."""
    platform: Literal["cpu", "gpu", "tpu"] | None = None
    """Insist on a kind of device."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache folder."""
    debug: bool = False
    """Show where an error was raised."""

    def __post_init__(self):
        check(self.num >= 1, f"--num must be at least 1, not {self.num}")
        check(self.batch_size >= 1, f"--batch-size must be at least 1, not {self.batch_size}")
        check(0 <= self.seed < 2**32, f"--seed must be in [0, 2**32), not {self.seed}")
        for path in self.out:
            pictures.check_output(path, self.num, gif=True)


def main(args: list[str]) -> None:
    """Draws what the command line says."""
    ckpt, args = command_line.take_option(args, "--ckpt")
    if ckpt is None:
        if {"-h", "--help"} & set(args):
            command_line.parse(Draw, args, None, "sample.py --ckpt DIR")
        raise ValueError("--ckpt is missing: give the directory of a run, such as --ckpt runs/digits")
    folder, newest = checkpoint.find(ckpt)
    recipe = workdir.load_config(folder, newest).sampling
    name, args = command_line.take_option(args, "--sampler")
    draw, sampling = parse(args, recipe, name or recipe.sampler, folder)
    folder, step = checkpoint.find(ckpt, draw.checkpoint)
    config = dataclasses.replace(workdir.load_config(folder, step), sampling=sampling)
    command_line.set_up_jax(min(draw.batch_size, draw.num), draw.platform, draw.compilation_cache)
    states = draw_states(config, workdir.load_params(config, folder, step, draw.weights), draw)
    for path in pictures.save_states(states, draw.out, draw.trajectory):
        print(path)


def parse(args: list[str], recipe: Sampling, sampler: str, folder: Path) -> tuple[Draw, Sampling]:
    """What to draw and how, the sampler's own options as `--sampler.NAME`; defaults from the run's recipe."""
    known = recipe.options if sampler == recipe.sampler else {}
    options = command_line.options_class(samplers.find(sampler), known)
    fields = [("sampler", options, dataclasses.field(default_factory=options))]
    arguments = dataclasses.make_dataclass("Arguments", fields, bases=(Draw,), frozen=True, kw_only=True)
    start = {name: getattr(recipe, name) for name in ("steps", "spacing", "clip_x0")}
    default = arguments(out=(folder / "samples.png",), **start)
    draw = command_line.parse(arguments, args, default, f"sample.py --ckpt {folder}")
    how = {name: getattr(draw, name) for name in start}
    return draw, Sampling(sampler=sampler, options=dataclasses.asdict(draw.sampler), **how)


def draw_states(config: Config, params: Params, draw: Draw) -> np.ndarray:
    """uint8 states (k, num, h, w, c): the last holds the samples, the others, if wanted, the path to them."""
    steps = config.objective.steps(config.sampling)
    path = draw.trajectory or any(out.suffix == ".gif" for out in draw.out)
    stages = min(GIF_FRAMES if path else PROGRESS_PARTS, steps)
    draw_all = partial(generate, config, params, num=draw.num, batch_size=draw.batch_size, seed=draw.seed)
    total = draw.num * chunk_count(steps, stages)
    with tqdm(total=total, unit="part", desc=f"{draw.num} pictures, {steps} steps") as bar:
        return draw_all(stages=stages, path=path, on_stage=bar.update)


if __name__ == "__main__":
    with command_line.one_line_errors("--debug" in sys.argv):
        main(sys.argv[1:])
