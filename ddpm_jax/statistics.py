"""What DPM-Solver-v3 knows of a network: checkpoint -> l, s and b at every noise level -> a file.

    python -m ddpm_jax.statistics --ckpt runs/mnist --images 256
    python sample.py --ckpt runs/mnist --sampler dpm_solver_v3 --sampler.statistics runs/mnist/statistics.npz --steps 10

With y = xt / sqrt(alpha_bar), f = (1 - l) y - x0 and ' for the derivative by lambda = log SNR / 2 along the ODE,

    l = E[the diagonal of d sqrt(1 - alpha_bar) eps / dxt]                     Eq. 5 and 58, Zheng et al. 2023
    s, b = argmin E|f' - s f - b|^2                                           Eq. 11 and 60-61

for each number of a picture by itself, xt being data with noise. All levels see the same pictures, noise and signs, so
that the tables are as smooth as the network: l' is a difference of them.
"""

import dataclasses
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from ddpm_jax.cli import arguments, run_options
from ddpm_jax.cli.run_options import InBatches
from ddpm_jax.config import Config
from ddpm_jax.data.batches import batch_at
from ddpm_jax.devices import parallel
from ddpm_jax.diffusion.prediction import make_denoiser
from ddpm_jax.errors import check
from ddpm_jax.evaluation.solver_statistics import Part, estimate, levels, part
from ddpm_jax.files import atomic_file
from ddpm_jax.generation.generate import network_of
from ddpm_jax.models import Params
from ddpm_jax.samplers import sample_keys
from ddpm_jax.samplers.dpm_solver_v3 import Statistics

NAME = "statistics.npz"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimation(InBatches):
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
    wanted, run = run_options.parse(Estimation, args, "python -m ddpm_jax.statistics")
    objective = run.config.objective
    wanted.set_up_jax(wanted.images)
    schedule = objective.noise_schedule
    parts = parts_of(run.config, run.params(wanted.weights), wanted)
    bar = tqdm(total=len(levels(schedule, wanted.levels)), unit="level", desc=f"{wanted.images} images")
    with wanted.shortage_named(run.config.model), bar:
        found = estimate(schedule, parts, wanted.levels, bar.update)
    print(save(found, wanted.out or run.folder / NAME))


def parts_of(config: Config, params: Params, wanted: Estimation) -> list[Part]:
    """At least `images` pictures of the recipe's data, in full batches, no picture twice."""
    batch_size = parallel.even_batch(wanted.batch_size, wanted.images)
    num = -(-wanted.images // batch_size) * batch_size
    held = config.data.load(config.model.image_size, config.model.channels)
    check(
        num <= len(held), f"--images {wanted.images} in batches of {batch_size} are more than there are: {len(held):,}"
    )
    batch, objective, found = batch_at(held, wanted.seed, 0, num), config.objective, []
    labels = batch.get("label", np.zeros(num, np.int32))
    for start in range(0, num, batch_size):
        rows = np.arange(start, start + batch_size)
        keys = sample_keys(wanted.seed, jnp.asarray(rows))
        keys, images, label = parallel.shard((keys, batch["image"][rows], labels[rows]))
        network, target = objective.predictor(network_of(config.model, params, label))
        found.append(part(keys, make_denoiser(objective.noise_schedule, network, target, None), images))
    return found


def save(statistics: Statistics, path: Path) -> Path:
    """Leaves the statistics as a file, for `--sampler.statistics`."""
    with atomic_file(path) as file:
        np.savez(file, **statistics._asdict())
    return path


if __name__ == "__main__":
    with arguments.one_line_errors("--debug" in sys.argv):
        main(sys.argv[1:])
