"""Measure the variational bound of a run's network on its data, in bits per dimension.

    python -m ddpm_jax.evaluate --ckpt runs/digits --num 256

Write bits_per_dim.json to the run's directory or to `--out`, and bits_per_dim.png with the bound's
term at each timestep.
"""

import dataclasses
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ddpm_jax.cli import arguments, run_options
from ddpm_jax.cli.run_options import BatchedRunOptions
from ddpm_jax.config import Config
from ddpm_jax.data import Batch, check_labels
from ddpm_jax.data.batches import batch_at
from ddpm_jax.diffusion.posterior import Variance
from ddpm_jax.errors import check
from ddpm_jax.evaluation.bits_per_dim import PROGRESS_PARTS, evaluate, summary
from ddpm_jax.figures import plots
from ddpm_jax.files import atomic_file, check_writable, write_all
from ddpm_jax.generation.generate import chunk_count

NAME = "bits_per_dim"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions(BatchedRunOptions):
    """Measure bits per dimension; `--ckpt DIR` names the run."""

    num: int = 256
    """Number of images, drawn from the recipe's data."""
    split: str | None = None
    """Split of the data, such as test; None for the recipe's. Not all data has splits."""
    out: Path | None = None
    """Folder to write to; None for the run's directory."""
    variance: Variance | None = None
    """Variance of the reverse step; None for the objective's."""

    def __post_init__(self):
        super().__post_init__()
        check(self.num >= 2, f"--num must be at least 2, for a standard error, not {self.num}.")


def main(args: list[str]) -> None:
    """Run the command with these arguments."""
    options, run = run_options.parse(EvaluateOptions, args, "python -m ddpm_jax.evaluate")
    config = run_options.image_config(run)
    objective = config.objective
    options.set_up_jax(options.num)
    config = with_split(config, options.split)
    out = options.out or run.folder
    for path in output_paths(out):
        check_writable(path)
    batch = draw_images(config, options, run.classes)
    params = run.params(options.weights)
    variance = options.variance
    num_batches = -(-options.num // options.batch_size)
    num_parts = num_batches * chunk_count(objective.timesteps, PROGRESS_PARTS)
    label = f"{options.num} images, {objective.timesteps} timesteps"
    bar = tqdm(total=num_parts, unit="part", desc=label)
    with options.explain_oom(config.model), bar:
        bound = evaluate(
            config, params, batch, options.batch_size, options.seed, variance, bar.update
        )
    result = {
        "step": run.step,
        "data": config.data.describe(),
        "variance": variance or objective.variance,
        "weights": options.weights,
        "num": options.num,
        "seed": options.seed,
        **summary(bound),
    }
    print(describe(result))
    for path in save(result, out, run.folder):
        print(path)


def with_split(config: Config, split: str | None) -> Config:
    """The config with another split of its data. Raise ValueError if the data has no splits."""
    if split is None:
        return config
    data = config.data
    check("split" in vars(data), f"The data has no splits ({data.describe()}): leave out --split.")
    change: dict[str, Any] = {"split": split}
    return dataclasses.replace(config, data=dataclasses.replace(data, **change))


def draw_images(config: Config, options: EvaluateOptions, classes: Sequence[str] | None) -> Batch:
    """Draw `options.num` images of the config's data, with their labels.

    No image is drawn twice, and the seed decides which are drawn. Raise ValueError if the data has
    too few images, or other classes than those of the network.
    """
    images = config.load_images()
    check_labels(images, config.model.num_classes, classes)
    check(
        options.num <= len(images),
        f"--num {options.num} is more than the {len(images):,} images of the data: lower it.",
    )
    return batch_at(images, options.seed, 0, options.num)


def describe(result: dict) -> str:
    """The bound and its parts as lines of text."""
    total = f"{result['bits_per_dim']:.4f} +- {result['standard_error']:.4f}"
    origin = f"{result['num']} images, step {result['step']}"
    lines = [f"Bits per dimension: at most {total} ({origin})"]
    for symbol, key in (("L_T", "prior"), ("L_1 .. L_T-1", "steps"), ("L_0", "decoder")):
        lines.append(f"  {symbol:<14}{result[key]:8.4f}  {key}")
    return "\n".join(lines)


def output_paths(folder: Path) -> tuple[Path, Path]:
    """The paths of the numbers and of their plot."""
    return folder / f"{NAME}.json", folder / f"{NAME}.png"


def save(result: dict, folder: Path, run: Path) -> list[Path]:
    """Write the numbers as JSON and their plot as PNG to a folder. Return both paths.

    The plot's title names the run. Raise OSError as `files.write_all` does.
    """
    numbers, plot = output_paths(folder)
    title = f"{run}: {result['bits_per_dim']:.3f} bits per dimension"
    draw_plot = partial(plots.bound_curve, result["per_timestep"], title=title)
    return write_all({numbers: partial(_write_json, result), plot: draw_plot})


def _write_json(result: dict, path: Path) -> None:
    with atomic_file(path) as file:
        file.write((json.dumps(result, indent=2) + "\n").encode())


if __name__ == "__main__":
    arguments.run(main)
