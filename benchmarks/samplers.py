"""Measure both tables of docs/samplers.md, and write them to that page.

    python benchmarks/samplers.py                                   # the first table, a minute
    python benchmarks/samplers.py --ckpt runs/mnist --data-dir DIR  # both, most of an hour

The first table holds the errors of samplers on a mixture of Gaussians, whose denoiser is exact; the
second, the distances of a trained network's samples from its data. The measurements of the second
are kept in runs/samplers.json, so the same command continues after an interruption. For
DPM-Solver-v3, the first table uses statistics of the mixture, and the second the statistics that
`python -m ddpm_jax.statistics --ckpt` wrote to the run's directory.
"""

import argparse
import dataclasses
import functools
import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from scipy.special import ndtr, ndtri
from sklearn.metrics import pairwise_distances
from tqdm import tqdm

from ddpm_jax import samplers, statistics
from ddpm_jax.cli import arguments
from ddpm_jax.diffusion.analytic import mixture_x0
from ddpm_jax.diffusion.grid import make_grid, spaced, timesteps_for
from ddpm_jax.diffusion.prediction import Denoiser, make_denoiser
from ddpm_jax.diffusion.schedule import NoiseSchedule, from_betas, linear_betas
from ddpm_jax.evaluation import solver_statistics
from ddpm_jax.generation.editing import check_inverts
from ddpm_jax.generation.generate import generate
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.runs.sources import RunSource, open_run

PAGE = Path(__file__).parent.parent / "docs" / "samplers.md"
MEASUREMENTS = Path("runs/samplers.json")
REAL = "real digits"
OPTIONS: dict[str, tuple[str, dict]] = {
    "ddpm fixed_large": ("ddpm", {"variance": "fixed_large"}),
    "ddim eta 1": ("ddim", {"eta": 1.0}),
    "edm S_churn 40": ("edm", {"S_churn": 40.0}),
    "pndm without runge_kutta": ("pndm", {"runge_kutta": False}),
    "unipc order 3": ("unipc", {"order": 3}),
}
EXACT_BUDGETS = (10, 20, 50)
TRAINED_BUDGETS = (5, 10, 20, 50, 250)
SPACINGS = ("trailing", "log_snr", "karras")
# The mixture of Gaussians, and the number of samples that are compared with it.
MEANS = np.array([-0.9, 0.0, 0.8])
STD = 0.1
WEIGHTS = np.array([0.5, 0.2, 0.3])
NUM_POINTS = 1 << 14


def cases(statistics_file: Path) -> dict[str, tuple[str, dict]]:
    """The rows of both tables: every sampler with its defaults, and some with other options."""
    plain: dict[str, tuple[str, dict]] = {name: (name, {}) for name in samplers.names()}
    with_statistics = ("dpm_solver_v3", {"statistics": str(statistics_file)})
    return plain | {"dpm_solver_v3 with statistics": with_statistics} | OPTIONS


def steps_for(sampler: samplers.Sampler, evaluations: int) -> int:
    """The number of steps that a budget of network evaluations allows; 0 if none."""
    return sum(sampler.num_evaluations(steps) <= evaluations for steps in range(1, evaluations + 1))


@functools.cache
def exact_denoiser() -> tuple[NoiseSchedule, Denoiser]:
    """The linear schedule, and the exact denoiser of the mixture."""
    schedule = from_betas(linear_betas())
    mixture = (MEANS.reshape(3, 1, 1, 1), STD, WEIGHTS)
    network = mixture_x0(schedule, *(jnp.asarray(x, jnp.float32) for x in mixture))
    return schedule, make_denoiser(schedule, network, "x0", None)


def adds_noise(sampler: samplers.Sampler) -> bool:
    """Whether a sampler draws noise during the walk."""
    schedule, _ = exact_denoiser()
    try:
        check_inverts(sampler, make_grid(schedule, spaced(1000, 5)), (1, 1, 1))
    except ValueError:
        return True
    return False


def exact_error(name: str, options: dict, spacing: str, evaluations: int) -> float | None:
    """The Wasserstein-2 distance of samples of one pixel from a mixture of three Gaussians.

    The initial noise is the quantiles of the normal distribution, so a deterministic sampler has
    no random error. None if the budget allows no step.
    """
    sampler = samplers.make(name, **options)
    steps = steps_for(sampler, evaluations)
    if not steps:
        return None
    quantiles = (np.arange(NUM_POINTS) + 0.5) / NUM_POINTS
    xT = jnp.asarray(ndtri(quantiles).reshape(-1, 1, 1, 1), jnp.float32)  # (n, 1, 1, 1)
    schedule, denoise = exact_denoiser()
    keys = samplers.sample_keys(0, jnp.arange(NUM_POINTS))
    grid = make_grid(schedule, timesteps_for(schedule, steps, spacing))
    return wasserstein(np.asarray(samplers.sample(keys, denoise, sampler, grid, xT), float))


def wasserstein(x0: np.ndarray) -> float:
    """The Wasserstein-2 distance of samples from the mixture."""
    expected = mixture_quantiles((np.arange(x0.size) + 0.5) / x0.size)
    return float(np.sqrt(np.mean((np.sort(x0.reshape(-1)) - expected) ** 2)))


def draw_from_mixture(seed: int, n: int = NUM_POINTS) -> np.ndarray:
    """Draw n samples of the mixture itself."""
    rng = np.random.default_rng(seed)
    return rng.choice(MEANS, n, p=WEIGHTS) + STD * rng.normal(size=n)


def mixture_statistics() -> Path:
    """Write a file of DPM-Solver-v3's statistics of the mixture. Return its path."""
    images = jnp.asarray(draw_from_mixture(0).reshape(-1, 1, 1, 1), jnp.float32)  # (n, 1, 1, 1)
    schedule, denoise = exact_denoiser()
    keys = samplers.sample_keys(1, jnp.arange(NUM_POINTS))
    batch = solver_statistics.statistics_batch(keys, denoise, images)
    estimated = solver_statistics.estimate(schedule, [batch])
    MEASUREMENTS.parent.mkdir(exist_ok=True)
    return statistics.save(estimated, MEASUREMENTS.with_name("mixture_statistics.npz"))


def mixture_quantiles(probabilities: np.ndarray) -> np.ndarray:
    """The mixture's quantiles, interpolated in a fine table of its distribution function."""
    x = np.linspace(-3, 3, 200_001)
    distribution = np.sum(WEIGHTS * ndtr((x[:, None] - MEANS) / STD), 1)
    return np.interp(probabilities, distribution, x)


def energy_distance(drawn: np.ndarray, real: np.ndarray, among_real: float) -> float:
    """(2 E|X - Y| - E|X - X'| - E|Y - Y'|) / E|Y - Y'|, unbiased (Szekely & Rizzo 2013).

    X are the rows of `drawn`, Y those of `real`, each (n, pixels). `among_real` is E|Y - Y'|.
    """
    across = np.mean(pairwise_distances(drawn, real))
    among = np.sum(pairwise_distances(drawn, drawn)) / (len(drawn) * (len(drawn) - 1))
    return float((2 * across - among - among_real) / among_real)


def trained_errors(run: RunSource, data_dir: str | None, num_images: int, seed: int = 0) -> dict:
    """Measure the energy distance of every sampler's images from the data, at every budget.

    Each measurement is kept and written to the page at once.
    """
    key = f"{run.folder} at step {run.step}, {num_images} images"
    config = run.config
    data = config.data
    if data_dir is not None:
        data = dataclasses.replace(data, data_dir=data_dir)
    images = data.load(config.model.image_size, config.model.channels)
    real = flatten(images.read(np.arange(min(len(images), 4000)))["image"])  # (n, pixels)
    among_real = np.sum(pairwise_distances(real, real)) / (len(real) * (len(real) - 1))
    subsets = [real[start : start + num_images] for start in range(0, 20 * num_images, num_images)]
    by_chance = [energy_distance(subset, real, among_real) for subset in subsets]
    keep(key, REAL, "0", float(np.sqrt(np.mean(np.square(by_chance)))))
    params = run.params("ema")
    rows = cases(run.folder / statistics.NAME)
    remaining = [(name, budget) for budget in TRAINED_BUDGETS for name in rows]
    for name, budget in tqdm(remaining, desc="trained network"):
        sampler, options = rows[name]
        steps = steps_for(samplers.make(sampler, **options), budget)
        if steps and str(budget) not in measurements()[key].get(name, {}):
            states = generate(
                config,
                params,
                num_images=num_images,
                batch_size=num_images,
                seed=seed,
                sampling=Sampling(sampler=sampler, options=options, steps=steps),
            )
            keep(key, name, str(budget), energy_distance(flatten(states[-1]), real, among_real))
            write_to_page("trained", trained_table(measurements()[key]))
    return measurements()[key]


def flatten(images: np.ndarray) -> np.ndarray:
    """uint8 images (n, h, w, c) as rows of numbers in [-1, 1]."""
    return images.reshape(len(images), -1).astype(np.float32) / 127.5 - 1


def measurements() -> dict:
    """The measurements so far, as {network: {row: {budget: distance}}}."""
    return json.loads(MEASUREMENTS.read_text()) if MEASUREMENTS.exists() else {}


def keep(key: str, row: str, budget: str, value: float) -> None:
    """Add one measurement to the file."""
    updated = measurements()
    updated.setdefault(key, {}).setdefault(row, {})[budget] = value
    MEASUREMENTS.parent.mkdir(exist_ok=True)
    MEASUREMENTS.write_text(json.dumps(updated, indent=1))


def exact_table() -> str:
    """The Markdown table of errors on the mixture, by spacing and network evaluations."""
    columns = [f"{spacing}, {n}" for spacing in SPACINGS for n in EXACT_BUDGETS]
    lines = [["sampler", "order", "evaluations per step", *columns], ["---"] * (3 + len(columns))]
    for case, (name, options) in tqdm(cases(mixture_statistics()).items(), desc="exact denoiser"):
        sampler = samplers.make(name, **options)
        order = "adds noise" if adds_noise(sampler) else str(sampler.order)
        evaluations = str(sampler.evaluations)
        if sampler.startup_evaluations:
            evaluations += f", {sum(sampler.startup_evaluations)} more at the start"
        errors = [
            exact_error(name, options, spacing, n) for spacing in SPACINGS for n in EXACT_BUDGETS
        ]
        lines.append([case, order, evaluations, *map(cell, errors)])
    by_chance = np.median([wasserstein(draw_from_mixture(seed)) for seed in range(1, 21)])
    last = ["samples of the mixture itself", "", "", *[cell(float(by_chance))] * len(columns)]
    return markdown([*lines, last])


def trained_table(distances: dict) -> str:
    """The Markdown table of energy distances from the data, by network evaluations."""
    lines = [["sampler", *map(str, TRAINED_BUDGETS)], ["---"] * (1 + len(TRAINED_BUDGETS))]
    for name in cases(Path()):
        row = distances.get(name, {})
        lines.append([name, *(cell(row.get(str(budget))) for budget in TRAINED_BUDGETS)])
    by_chance = cell(distances[REAL]["0"])
    lines.append(["real digits, by chance", *[by_chance] * len(TRAINED_BUDGETS)])
    return markdown(lines)


def cell(value: float | None) -> str:
    """A number of a table; empty for None."""
    return "" if value is None else f"{value:.4f}"


def markdown(lines: list[list[str]]) -> str:
    """A Markdown table from its cells."""
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_to_page(name: str, table: str) -> None:
    """Replace the table between the markers `<!-- name -->` and `<!-- end -->` of the page."""
    page = re.sub(
        f"(<!-- {name} -->\n).*?(<!-- end -->)",
        lambda match: f"{match[1]}{table}\n{match[2]}",
        PAGE.read_text(),
        flags=re.S,
    )
    PAGE.write_text(page)


def main() -> None:
    """Measure, write the page and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ckpt", help="directory of a run, such as runs/mnist")
    parser.add_argument("--data-dir", help="where its data is, if not where it was trained")
    parser.add_argument("--num", type=int, default=64, help="images drawn by each sampler")
    options = parser.parse_args()
    arguments.set_up_jax(options.num, None, cache=True)
    write_to_page("exact", exact_table())
    if options.ckpt:
        run = open_run(options.ckpt)
        distances = trained_errors(run, options.data_dir, options.num)
        write_to_page("trained", trained_table(distances))
    print(PAGE.read_text())


if __name__ == "__main__":
    main()
