"""How well a run's network explains its data: checkpoint -> variational bound -> bits per dimension.

    python -m ddpm_jax.evaluate --ckpt runs/digits --num 256

Leaves bits_per_dim.json, and bits_per_dim.png with the bound's term at each timestep, in the run's directory.
"""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from ddpm_jax import command_line, figures, on_run, parallel
from ddpm_jax.config import Config
from ddpm_jax.data import Batch, batch_at
from ddpm_jax.diffusion import Sampling
from ddpm_jax.errors import check
from ddpm_jax.files import atomic_file
from ddpm_jax.generation import chunk_count, network_of
from ddpm_jax.grids import Variance
from ddpm_jax.likelihood import Bound, bound_terms, prior_term
from ddpm_jax.models import Params
from ddpm_jax.on_run import InBatches
from ddpm_jax.samplers import sample_keys

PROGRESS_PARTS = 20
NAME = "bits_per_dim"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation(InBatches):
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
    wanted, run = on_run.parse(Evaluation, args, "python -m ddpm_jax.evaluate")
    objective = run.config.objective
    wanted.set_up_jax(wanted.num)
    config = with_split(run.config, wanted.split)
    batch, params, variance = draw_images(config, wanted), run.params(wanted.weights), wanted.variance
    parts = -(-wanted.num // wanted.batch_size) * chunk_count(objective.timesteps, PROGRESS_PARTS)
    bar = tqdm(total=parts, unit="part", desc=f"{wanted.num} images, {objective.timesteps} timesteps")
    with wanted.shortage_named(config.model), bar:
        bound = evaluate(config, params, batch, wanted.batch_size, wanted.seed, variance, bar.update)
    about = {"step": run.step, "data": config.data.describe(), "variance": variance or objective.variance}
    found = about | {"weights": wanted.weights, "num": wanted.num, "seed": wanted.seed} | summary(bound)
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


def draw_images(config: Config, wanted: Evaluation) -> Batch:
    """`num` images of the recipe's data, and their labels, no image twice; the seed says which."""
    images = config.data.load(config.model.image_size, config.model.channels)
    check(wanted.num <= len(images), f"--num {wanted.num} is more than the {len(images):,} images there are")
    return batch_at(images, wanted.seed, 0, wanted.num)


def evaluate(
    config: Config,
    params: Params,
    batch: Batch,
    batch_size: int,
    seed: int,
    variance: Variance | None = None,
    on_part: Callable[[], object] = lambda: None,
) -> Bound:
    """The bound of each image, x0 clipped: image i's noise depends on (seed, i) alone, whatever the batch size."""
    objective, num = config.objective, len(batch["image"])
    schedule = objective.noise_schedule()
    parts = jnp.split(jnp.arange(schedule.timesteps), chunk_count(schedule.timesteps, PROGRESS_PARTS))
    labels = batch.get("label", np.zeros(num, np.int32))
    batch_size = parallel.even_batch(batch_size, num)
    bounds = []
    for start in range(0, num, batch_size):
        rows = np.arange(start, start + batch_size)
        keys, images = sample_keys(seed, jnp.asarray(rows)), batch["image"][rows % num]
        keys, x0, label = parallel.shard((keys, images, labels[rows % num]))
        denoise = objective.denoiser(network_of(config.model, params, label), Sampling())
        terms = []
        for t in parts:
            terms.append(bound_terms(keys, schedule, denoise, x0, t, variance or objective.variance))
            jax.block_until_ready(terms)  # so that a progress bar shows what is done, not what is asked for
            on_part()
        bounds.append(Bound(jnp.concatenate(terms, 1), prior_term(schedule, x0)))
    return jax.tree.map(lambda *figures: jnp.concatenate(figures)[:num], *bounds)  # the last batch is filled up


def summary(bound: Bound) -> dict:
    """The figures of a bound over many images, as plain numbers; raises ValueError where one is not finite."""
    total = np.asarray(bound.total)
    check(bool(np.isfinite(total).all()), "the bound is not finite: look for NaN in the weights")
    return {
        "bits_per_dim": float(total.mean()),
        "standard_error": float(total.std(ddof=1) / np.sqrt(len(total))),
        "prior": float(np.mean(bound.prior)),
        "steps": float(np.mean(np.sum(bound.terms[:, 1:], 1))),
        "decoder": float(np.mean(bound.decoder)),
        "per_timestep": np.mean(bound.terms, 0).tolist(),
    }


def describe(found: dict) -> str:
    """The figures for a reader."""
    rows = [("L_T", "prior"), ("L_1 .. L_T-1", "steps"), ("L_0", "decoder")]
    parts = [f"  {name:<14}{found[key]:8.4f}  {key}" for name, key in rows]
    whole = f"{found['bits_per_dim']:.4f} +- {found['standard_error']:.4f}"
    return "\n".join([f"bits per dimension at most {whole} ({found['num']} images, step {found['step']})", *parts])


def save(found: dict, folder: Path) -> list[Path]:
    """Leaves the figures and their picture in a folder."""
    numbers, picture = folder / f"{NAME}.json", folder / f"{NAME}.png"
    with atomic_file(numbers) as file:
        file.write((json.dumps(found, indent=2) + "\n").encode())
    figures.bound_curve(found["per_timestep"], picture, f"{folder}: {found['bits_per_dim']:.3f} bits per dimension")
    return [numbers, picture]


if __name__ == "__main__":
    with command_line.one_line_errors("--debug" in sys.argv):
        main(sys.argv[1:])
