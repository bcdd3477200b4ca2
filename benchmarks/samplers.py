"""Measure the three tables of docs/samplers.md, and write them to that page.

    python benchmarks/samplers.py exact                                    # a minute
    python benchmarks/samplers.py energy --ckpt runs/mnist_v               # most of an hour
    python benchmarks/samplers.py frechet --ckpt runs/second --num 128 \\
        --rows ddim ddpm dpmpp_2m unipc

`exact` holds the errors of samplers on a mixture of Gaussians, whose denoiser is exact. `energy`
and `frechet` compare a trained network's samples with its data: by the energy distance of pixels,
and by the Frechet distance of EfficientNet's features. Their measurements are kept in
runs/samplers.json, so the same command continues after an interruption; delete this file after a
change of the samplers, the statistics or the data. For DPM-Solver-v3, `exact`
uses statistics of the mixture, and the others use the statistics that
`python -m ddpm_jax.statistics --ckpt` wrote to the run's directory.
"""

import argparse
import dataclasses
import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from scipy.special import ndtr, ndtri
from sklearn.metrics import pairwise_distances
from tqdm import tqdm

from ddpm_jax import samplers, statistics
from ddpm_jax.cli import arguments
from ddpm_jax.data.loading import InMemory
from ddpm_jax.diffusion.analytic import mixture_x0
from ddpm_jax.diffusion.grid import make_grid, spaced, timesteps_for
from ddpm_jax.diffusion.prediction import Denoiser, make_denoiser
from ddpm_jax.diffusion.schedule import NoiseSchedule, from_betas, linear_betas
from ddpm_jax.errors import check
from ddpm_jax.evaluation import solver_statistics
from ddpm_jax.evaluation.features import load_features
from ddpm_jax.evaluation.frechet import Moments, frechet_distance, moments
from ddpm_jax.evaluation.reference import feature_vectors
from ddpm_jax.generation.editing import check_inverts
from ddpm_jax.generation.generate import generate
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.runs.provenance import weights_hash
from ddpm_jax.runs.sources import RunSource, open_run

PAGE = Path(__file__).parent.parent / "docs" / "samplers.md"
MEASUREMENTS = Path("runs/samplers.json")
BY_CHANCE = "real images, by chance"
NUM_REAL = 4000
"""Images of the data that samples are compared with."""
NUM_OTHERS = 1280
"""The next images of the data, whose subsets give the distances "by chance"."""
BATCH = 64
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
    """The rows of the tables: every sampler with its defaults, and some with other options."""
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
    path = MEASUREMENTS.with_name("mixture_statistics.npz")
    path.parent.mkdir(exist_ok=True)
    statistics.save(estimated, path)
    return path


def mixture_quantiles(probabilities: np.ndarray) -> np.ndarray:
    """The mixture's quantiles, interpolated in a fine table of its distribution function."""
    x = np.linspace(-3, 3, 200_001)
    distribution = np.sum(WEIGHTS * ndtr((x[:, None] - MEANS) / STD), 1)
    return np.interp(probabilities, distribution, x)


class EnergyDistance:
    """The energy distance of the pixels of images from real ones, relative to E|Y - Y'|.

    (2 E|X - Y| - E|X - X'| - E|Y - Y'|) / E|Y - Y'|, unbiased (Szekely & Rizzo 2013). X are the
    pixels of the images, Y those of the real ones.
    """

    def __init__(self, real: np.ndarray):
        self.real = flatten(real)
        self.among_real = mean_distance(self.real)

    def __call__(self, drawn: np.ndarray) -> float:
        """The distance of uint8 images (n, h, w, c)."""
        pixels = flatten(drawn)
        across = np.mean(pairwise_distances(pixels, self.real))
        return float((2 * across - mean_distance(pixels)) / self.among_real - 1)


def mean_distance(rows: np.ndarray) -> float:
    """The mean distance between two different rows."""
    return np.sum(pairwise_distances(rows, rows)) / (len(rows) * (len(rows) - 1))


class FeatureDistance:
    """The squared Frechet distance of images from real ones in EfficientNet's features."""

    def __init__(self, real: np.ndarray):
        self.features = load_features("efficientnet")
        self.real = self.moments(real)

    def __call__(self, drawn: np.ndarray) -> float:
        """The distance of uint8 images (n, h, w, c)."""
        return frechet_distance(self.real, self.moments(drawn))

    def moments(self, images: np.ndarray) -> Moments:
        """The mean and the covariance of the features of uint8 images."""
        return moments(feature_vectors(self.features, InMemory(images)))


DISTANCES = {"energy": EnergyDistance, "frechet": FeatureDistance}


def measure_trained(table: str, run: RunSource, options: argparse.Namespace) -> None:
    """Measure the distance of the samplers' images from the data, at every budget.

    Each measurement is kept and written to the page at once.
    """
    params = run.params("ema")
    weights = weights_hash(params)[:16]
    key = f"{table} of {run.folder} at step {run.step} ({weights}), {options.num} images"
    config = run.config
    data = config.data
    if options.data_dir is not None:
        data = dataclasses.replace(data, data_dir=options.data_dir)
    images = data.load(config.model.image_size, config.model.channels)
    needed = NUM_REAL + NUM_OTHERS
    check(len(images) >= needed, f"The data has {len(images):,} images: {needed:,} are needed.")
    read = images.read(np.arange(needed))["image"]
    distance = DISTANCES[table](read[:NUM_REAL])
    if BY_CHANCE not in measurements().get(key, {}):
        others = read[NUM_REAL:]
        starts = range(0, NUM_OTHERS - options.num + 1, options.num)
        by_chance = [distance(others[start : start + options.num]) for start in starts]
        keep(key, BY_CHANCE, "0", float(np.sqrt(np.mean(np.square(by_chance)))))
    rows = cases(run.folder / statistics.NAME)
    names = options.rows or list(rows)
    for name, budget in tqdm([(name, budget) for budget in TRAINED_BUDGETS for name in names]):
        sampler, sampler_options = rows[name]
        steps = steps_for(samplers.make(sampler, **sampler_options), budget)
        if not steps or str(budget) in measurements()[key].get(name, {}):
            continue
        sampling = Sampling(sampler=sampler, options=sampler_options, steps=steps)
        (drawn,) = generate(
            config,
            params,
            num_images=options.num,
            batch_size=BATCH,
            seed=0,
            sampling=sampling,
        )
        keep(key, name, str(budget), distance(drawn))
    # Also the rows that an earlier call measured.
    measured = measurements()[key]
    write_to_page(table, trained_table([name for name in rows if name in measured], measured))


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


def trained_table(names: Sequence[str], distances: dict) -> str:
    """The Markdown table of the distances of these rows, by network evaluations."""
    lines = [["sampler", *map(str, TRAINED_BUDGETS)], ["---"] * (1 + len(TRAINED_BUDGETS))]
    for name in names:
        row = distances.get(name, {})
        lines.append([name, *(cell(row.get(str(budget))) for budget in TRAINED_BUDGETS)])
    lines.append([BY_CHANCE, *[cell(distances[BY_CHANCE]["0"])] * len(TRAINED_BUDGETS)])
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


def check_page(name: str) -> None:
    """Raise ValueError unless the page has a place for a table."""
    marker = f"<!-- {name} -->"
    check(
        PAGE.read_text().count(marker) == 1,
        f"{PAGE} has no place for this table: add the lines {marker} and <!-- end -->.",
    )


def main() -> None:
    """Measure, write the page and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=["exact", *DISTANCES])
    parser.add_argument("--ckpt", help="directory of a run, such as runs/mnist")
    parser.add_argument("--data-dir", help="where its data is, if not where it was trained")
    parser.add_argument("--num", type=int, default=64, help="images drawn by each sampler")
    parser.add_argument("--rows", nargs="+", choices=cases(Path()), help="rows; all by default")
    options = parser.parse_args()
    if options.table != "exact" and not options.ckpt:
        parser.error(f"the table {options.table} needs --ckpt")
    if options.num > NUM_OTHERS:
        parser.error(f"--num must be at most {NUM_OTHERS}")
    check_page(options.table)
    arguments.set_up_jax(options.num, None, cache=True)
    if options.table == "exact":
        write_to_page("exact", exact_table())
    else:
        measure_trained(options.table, open_run(options.ckpt), options)
    print(PAGE.read_text())


if __name__ == "__main__":
    with arguments.one_line_errors(debug=False):
        main()
