"""How well a run's network explains its data: checkpoint -> variational bound -> bits per dimension.

    python -m ddpm_jax.evaluate --ckpt runs/digits --num 256

Leaves bits_per_dim.json, and bits_per_dim.png with the bound's term at each timestep, in the run's directory.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ddpm_jax.cli import arguments, run_options
from ddpm_jax.cli.run_options import BatchedRunOptions
from ddpm_jax.config import Config
from ddpm_jax.data import Batch
from ddpm_jax.data.batches import batch_at
from ddpm_jax.diffusion.posterior import Variance
from ddpm_jax.errors import check
from ddpm_jax.evaluation.bits_per_dim import PROGRESS_PARTS, evaluate, summary
from ddpm_jax.figures import plots
from ddpm_jax.files import atomic_file
from ddpm_jax.generation.generate import chunk_count

NAME = "bits_per_dim"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions(BatchedRunOptions):
    """What to measure; `--ckpt DIR` names the run."""

    num: int = 256
    """How many images of the recipe's data."""
    split: str | None = None
    """Another part of the data than the recipe's, such as test, where they have parts."""
    variance: Variance | None = None
    """That of the reverse step; None for the objective's."""

    def __post_init__(self):
        super().__post_init__()
        check(self.num >= 2, f"--num must be at least 2, for a standard error, not {self.num}")


def main(args: list[str]) -> None:
    """Measures what the command line says."""
    wanted, run = run_options.parse(EvaluateOptions, args, "python -m ddpm_jax.evaluate")
    objective = run.config.objective
    wanted.set_up_jax(wanted.num)
    config = with_split(run.config, wanted.split)
    batch, params, variance = (
        draw_images(config, wanted),
        run.params(wanted.weights),
        wanted.variance,
    )
    parts = -(-wanted.num // wanted.batch_size) * chunk_count(objective.timesteps, PROGRESS_PARTS)
    bar = tqdm(
        total=parts, unit="part", desc=f"{wanted.num} images, {objective.timesteps} timesteps"
    )
    with wanted.explain_oom(config.model), bar:
        bound = evaluate(
            config, params, batch, wanted.batch_size, wanted.seed, variance, bar.update
        )
    about = {
        "step": run.step,
        "data": config.data.describe(),
        "variance": variance or objective.variance,
    }
    found = (
        about | {"weights": wanted.weights, "num": wanted.num, "seed": wanted.seed} | summary(bound)
    )
    print(describe(found))
    for path in save(found, run.folder):
        print(path)


def with_split(config: Config, split: str | None) -> Config:
    """The config with another part of its data; raises ValueError where they have none."""
    if split is None:
        return config
    check("split" in vars(config.data), f"{config.data.describe()} has no parts: leave --split out")
    part: dict[str, Any] = {"split": split}
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **part))


def draw_images(config: Config, wanted: EvaluateOptions) -> Batch:
    """`num` images of the recipe's data, and their labels, no image twice; the seed says which."""
    images = config.data.load(config.model.image_size, config.model.channels)
    check(
        wanted.num <= len(images),
        f"--num {wanted.num} is more than the {len(images):,} images there are",
    )
    return batch_at(images, wanted.seed, 0, wanted.num)


def describe(found: dict) -> str:
    """The figures for a reader."""
    rows = [("L_T", "prior"), ("L_1 .. L_T-1", "steps"), ("L_0", "decoder")]
    parts = [f"  {name:<14}{found[key]:8.4f}  {key}" for name, key in rows]
    whole = f"{found['bits_per_dim']:.4f} +- {found['standard_error']:.4f}"
    return "\n".join(
        [
            f"bits per dimension at most {whole} ({found['num']} images, step {found['step']})",
            *parts,
        ]
    )


def save(found: dict, folder: Path) -> list[Path]:
    """Leaves the figures and their picture in a folder."""
    numbers, picture = folder / f"{NAME}.json", folder / f"{NAME}.png"
    with atomic_file(numbers) as file:
        file.write((json.dumps(found, indent=2) + "\n").encode())
    plots.bound_curve(
        found["per_timestep"], picture, f"{folder}: {found['bits_per_dim']:.3f} bits per dimension"
    )
    return [numbers, picture]


if __name__ == "__main__":
    with arguments.one_line_errors("--debug" in sys.argv):
        main(sys.argv[1:])
