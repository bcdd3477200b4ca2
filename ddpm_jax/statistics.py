"""Estimate the statistics of DPM-Solver-v3 from a run: checkpoint -> l, s and b at every noise level -> a file.

python -m ddpm_jax.statistics --ckpt runs/mnist --images 256
python sample.py --ckpt runs/mnist --sampler dpm_solver_v3 --sampler.statistics runs/mnist/statistics.npz --steps 10
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ddpm_jax.cli import arguments, run_options
from ddpm_jax.cli.run_options import BatchedRunOptions
from ddpm_jax.errors import check
from ddpm_jax.evaluation.solver_statistics import draw_statistics, estimate, levels
from ddpm_jax.files import atomic_file
from ddpm_jax.samplers.dpm_solver_v3 import Statistics

NAME = "statistics.npz"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StatisticsOptions(BatchedRunOptions):
    """What to estimate from; `--ckpt DIR` names the run."""

    images: int = 256
    """How many images of the recipe's data, rounded up to full batches."""
    levels: int = 128
    """At how many noise levels."""
    out: Path | None = None
    """The file; None for statistics.npz in the run's directory."""

    def __post_init__(self):
        super().__post_init__()
        check(self.images >= 2, f"--images must be at least 2, not {self.images}")
        check(self.levels >= 3, f"--levels must be at least 3, not {self.levels}")


def main(args: list[str]) -> None:
    """Estimates what the command line says."""
    wanted, run = run_options.parse(StatisticsOptions, args, "python -m ddpm_jax.statistics")
    objective = run.config.objective
    wanted.set_up_jax(wanted.images)
    schedule = objective.noise_schedule
    params = run.params(wanted.weights)
    parts = draw_statistics(run.config, params, wanted.images, wanted.batch_size, wanted.seed)
    bar = tqdm(
        total=len(levels(schedule, wanted.levels)), unit="level", desc=f"{wanted.images} images"
    )
    with wanted.explain_oom(run.config.model), bar:
        found = estimate(schedule, parts, wanted.levels, bar.update)
    print(save(found, wanted.out or run.folder / NAME))


def save(statistics: Statistics, path: Path) -> Path:
    """Leaves the statistics as a file, for `--sampler.statistics`."""
    with atomic_file(path) as file:
        np.savez(file, **statistics._asdict())
    return path


if __name__ == "__main__":
    with arguments.one_line_errors("--debug" in sys.argv):
        main(sys.argv[1:])
