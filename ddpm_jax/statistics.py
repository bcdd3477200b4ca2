"""Estimate the statistics of DPM-Solver-v3 for a run's network, and write them to a file.

    python -m ddpm_jax.statistics --ckpt runs/mnist --images 256
    python sample.py --ckpt runs/mnist --sampler dpm_solver_v3 --steps 10 \\
        --sampler.statistics runs/mnist/statistics.npz
"""

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ddpm_jax.cli import arguments, run_options
from ddpm_jax.cli.run_options import BatchedRunOptions
from ddpm_jax.errors import check
from ddpm_jax.evaluation.solver_statistics import draw_batches, estimate, levels
from ddpm_jax.files import atomic_file, check_writable, write_all
from ddpm_jax.samplers.dpm_solver_v3 import Statistics

NAME = "statistics.npz"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StatisticsOptions(BatchedRunOptions):
    """Estimate statistics for DPM-Solver-v3; `--ckpt DIR` names the run."""

    images: int = 256
    """Number of images, drawn from the recipe's data and rounded up to full batches."""
    batch_size: int = 64
    """Images per batch. The result depends on it through the number of images alone."""
    levels: int = 128
    """Maximum number of noise levels."""
    out: Path | None = None
    """File to write; None for statistics.npz in the run's directory."""

    def __post_init__(self):
        super().__post_init__()
        check(self.images >= 2, f"--images must be at least 2, not {self.images}.")
        check(self.levels >= 3, f"--levels must be at least 3, not {self.levels}.")


def main(args: list[str]) -> None:
    """Run the command with these arguments."""
    options, run = run_options.parse(StatisticsOptions, args, "python -m ddpm_jax.statistics")
    config = run_options.image_config(run)
    objective = config.objective
    options.set_up_jax(options.images)
    out = options.out or run.folder / NAME
    check_writable(out)
    schedule = objective.noise_schedule
    params = run.params(options.weights)
    size = (options.images, options.batch_size, options.seed)
    with run_options.own_remedies():
        batches = draw_batches(config, params, *size, run.classes, run.values, run.condition_values)
    num_levels = len(levels(schedule, options.levels))
    bar = tqdm(total=num_levels, unit="level", desc=f"{options.images} images")
    with options.explain_oom(config.model), bar:
        statistics = estimate(schedule, batches, options.levels, bar.update)
    for path in write_all({out: partial(save, statistics)}):
        print(path)


def save(statistics: Statistics, path: Path) -> None:
    """Write statistics to a file for `--sampler.statistics`."""
    with atomic_file(path) as file:
        np.savez(file, **statistics._asdict())


if __name__ == "__main__":
    arguments.run(main)
