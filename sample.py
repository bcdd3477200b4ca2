"""Draws samples from a run: checkpoint -> sampler -> pictures.

    python sample.py --ckpt runs/digits --num 64 --steps 100 --out samples.png

Everything but --ckpt has a default from the run's recipe. `--ckpt DIR --help` lists every setting.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from tqdm import tqdm

from ddpm_jax import checkpoint, command_line, parallel, pictures, samplers, workdir
from ddpm_jax.config import Config, check
from ddpm_jax.diffusion import Sampling
from ddpm_jax.generation import chunk_count, generate, spread_over
from ddpm_jax.schedule import Spacing

PROGRESS_PARTS, GIF_FRAMES, CHAIN_STAGES, CHAIN_SAMPLES = 20, 50, 10, 10


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
            if path.suffix != ".gif":
                pictures.check_output(path, self.num)


def main(args: list[str]) -> None:
    """Draws what the command line says."""
    ckpt, args = command_line.take_option(args, "--ckpt")
    if ckpt is None:
        if {"-h", "--help"} & set(args):
            command_line.parse(Draw, args, None, "sample.py --ckpt DIR")
        raise ValueError("--ckpt is missing: give the directory of a run, such as --ckpt runs/digits")
    folder, newest = checkpoint.find(ckpt)
    recipe = workdir.load_config(folder, newest)
    name, args = command_line.take_option(args, "--sampler")
    draw, options = parse(args, recipe.sampling, name or recipe.sampling.sampler, folder)
    folder, step = checkpoint.find(ckpt, draw.checkpoint)
    sampling = Sampling(
        sampler=name or recipe.sampling.sampler,
        options=options,
        steps=draw.steps,
        spacing=draw.spacing,
        clip_x0=draw.clip_x0,
    )
    config = dataclasses.replace(workdir.load_config(folder, step), sampling=sampling)
    use_devices(draw)
    write(draw, draw_states(config, restore(config, folder, step, draw.weights), draw))


def parse(args: list[str], default: Sampling, sampler: str, folder: Path) -> tuple[Draw, dict[str, Any]]:
    """What to draw, and the options of the sampler as `--sampler.NAME`, defaults from the recipe."""
    known = dict(default.options) if sampler == default.sampler else {}
    options = command_line.options_class(samplers.find(sampler), known)
    fields = [("sampler", options, dataclasses.field(default_factory=options))]
    arguments = dataclasses.make_dataclass("Arguments", fields, bases=(Draw,), frozen=True, kw_only=True)
    start = {"steps": default.steps, "spacing": default.spacing, "clip_x0": default.clip_x0}
    draw = command_line.parse(
        arguments, args, arguments(out=(folder / "samples.png",), **start), f"sample.py --ckpt {folder}"
    )
    return draw, dataclasses.asdict(draw.sampler)


def use_devices(draw: Draw) -> None:
    """Sets JAX up before its first use."""
    if draw.compilation_cache:
        command_line.use_compilation_cache()
    parallel.use_cpu_cores(min(draw.batch_size, draw.num))
    if draw.platform is not None:
        parallel.require_platform(draw.platform)


def restore(config: Config, folder: Path, step: int, weights: str) -> Any:
    """The parameters to draw with; nothing else of the checkpoint is read."""
    like = parallel.like_replicated(jax.eval_shape(config.model.init, jax.random.key(0)))
    with checkpoint.Checkpoints(folder) as checkpoints:
        if weights == "raw":
            return checkpoints.restore(step, {"params": like})["params"]
        return checkpoints.restore(step, {"ema_params": {"ema": like}})["ema_params"]["ema"]


def draw_states(config: Config, params: Any, draw: Draw) -> np.ndarray:
    """uint8 states (k, num, h, w, c): the last holds the samples, the others, if wanted, the path to them."""
    steps = config.objective.steps(config.sampling)
    wants_path = draw.trajectory or any(path.suffix == ".gif" for path in draw.out)
    stages = min(GIF_FRAMES if wants_path else PROGRESS_PARTS, steps)
    parts = chunk_count(steps, stages)
    with tqdm(total=draw.num * parts, unit="part", desc=f"{draw.num} pictures, {steps} steps") as bar:
        return generate(
            config,
            params,
            num=draw.num,
            batch_size=draw.batch_size,
            seed=draw.seed,
            stages=stages,
            path=wants_path,
            on_stage=bar.update,
        )


def write(draw: Draw, states: np.ndarray) -> None:
    """Leaves the files that were asked for and names them."""
    for path in draw.out:
        if path.suffix == ".gif":
            pictures.save_gif(states, path)
        else:
            pictures.save_images(states[-1], path)
        print(path)
    if draw.trajectory:
        chosen = spread_over(len(states) - 1, CHAIN_STAGES)
        path = draw.out[0].with_name(f"{draw.out[0].stem}_chain.png")
        pictures.save_picture(pictures.chain_strip(states[chosen][:, :CHAIN_SAMPLES]), path)
        print(path)


if __name__ == "__main__":
    with command_line.one_line_errors("--debug" in sys.argv):
        main(sys.argv[1:])
