"""Which sampler, how many steps? Fills the tables of docs/samplers.md.

    python benchmarks/samplers.py                                       errors on data known in closed form, a minute
    python benchmarks/samplers.py --ckpt runs/mnist --data-dir DIR      also samples of a trained net, most of an hour

What was measured on a trained net is kept in runs/samplers.json, so that a run that was cut off goes on.
DPM-Solver-v3 takes statistics of the mixture, or those that `python -m ddpm_jax.statistics --ckpt` left in the run.
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
MEASURED = Path("runs/samplers.json")
OPTIONS: dict[str, tuple[str, dict]] = {
    "ddpm fixed_large": ("ddpm", {"variance": "fixed_large"}),
    "ddim eta 1": ("ddim", {"eta": 1.0}),
    "edm S_churn 40": ("edm", {"S_churn": 40.0}),
    "pndm without runge_kutta": ("pndm", {"runge_kutta": False}),
    "unipc order 3": ("unipc", {"order": 3}),
}
EXACT_BUDGETS, TRAINED_BUDGETS = (10, 20, 50), (5, 10, 20, 50, 250)
SPACINGS = ("trailing", "log_snr", "karras")
MEANS, STD, WEIGHTS, POINTS = np.array([-0.9, 0.0, 0.8]), 0.1, np.array([0.5, 0.2, 0.3]), 1 << 14


def cases(statistics_file: Path) -> dict[str, tuple[str, dict]]:
    """The rows of both tables: every sampler, and some with other options."""
    plain: dict[str, tuple[str, dict]] = {name: (name, {}) for name in samplers.names()}
    with_statistics = "dpm_solver_v3", {"statistics": str(statistics_file)}
    return plain | {"dpm_solver_v3 with statistics": with_statistics} | OPTIONS


def steps_for(sampler: samplers.Sampler, evaluations: int) -> int:
    """How many steps so many evaluations allow, 0 if none."""
    return sum(sampler.num_evaluations(steps) <= evaluations for steps in range(1, evaluations + 1))


@functools.cache
def exact() -> tuple[NoiseSchedule, Denoiser]:
    """The linear schedule, and the mixture's own denoiser on it."""
    schedule = from_betas(linear_betas())
    network = mixture_x0(
        schedule, *(jnp.asarray(x, jnp.float32) for x in (MEANS.reshape(3, 1, 1, 1), STD, WEIGHTS))
    )
    return schedule, make_denoiser(schedule, network, "x0", None)


def adds_noise(sampler: samplers.Sampler) -> bool:
    """Whether a walk depends on its key."""
    try:
        check_inverts(sampler, make_grid(exact()[0], spaced(1000, 5)), (1, 1, 1))
    except ValueError:
        return True
    return False


def exact_error(name: str, options: dict, spacing: str, evaluations: int) -> float | None:
    """Wasserstein-2 distance of samples of one pixel from a mixture of three Gaussians whose x0 is known.

    The noise is the normal distribution's quantiles, so that a deterministic sampler's error is its own.
    """
    sampler = samplers.make(name, **options)
    steps = steps_for(sampler, evaluations)
    if not steps:
        return None
    quantiles = (np.arange(POINTS) + 0.5) / POINTS
    xT = jnp.asarray(ndtri(quantiles).reshape(-1, 1, 1, 1), jnp.float32)
    schedule, denoise = exact()
    keys, grid = (
        samplers.sample_keys(0, jnp.arange(POINTS)),
        make_grid(schedule, timesteps_for(schedule, steps, spacing)),
    )
    return wasserstein(np.asarray(samplers.sample(keys, denoise, sampler, grid, xT), float))


def wasserstein(x0: np.ndarray) -> float:
    """Wasserstein-2 distance of samples from the mixture."""
    wanted = mixture_quantiles((np.arange(x0.size) + 0.5) / x0.size)
    return float(np.sqrt(np.mean((np.sort(x0.reshape(-1)) - wanted) ** 2)))


def drawn_from_mixture(seed: int, count: int = POINTS) -> np.ndarray:
    """Samples of the mixture itself."""
    random = np.random.default_rng(seed)
    return random.choice(MEANS, count, p=WEIGHTS) + STD * random.normal(size=count)


def mixture_statistics() -> Path:
    """A file of DPM-Solver-v3's statistics of the mixture."""
    images = jnp.asarray(drawn_from_mixture(0).reshape(-1, 1, 1, 1), jnp.float32)
    schedule, denoise = exact()
    part = solver_statistics.statistics_batch(
        samplers.sample_keys(1, jnp.arange(POINTS)), denoise, images
    )
    MEASURED.parent.mkdir(exist_ok=True)
    return statistics.save(
        solver_statistics.estimate(schedule, [part]), MEASURED.with_name("mixture_statistics.npz")
    )


def mixture_quantiles(quantiles: np.ndarray) -> np.ndarray:
    """Where the mixture's distribution function takes these values, by a fine table of it."""
    x = np.linspace(-3, 3, 200_001)
    return np.interp(quantiles, np.sum(WEIGHTS * ndtr((x[:, None] - MEANS) / STD), 1), x)


def energy_distance(drawn: np.ndarray, real: np.ndarray, among_real: float) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| over E|Y - Y'|, unbiased (Szekely & Rizzo 2013); pictures (n, pixels)."""
    across = np.mean(pairwise_distances(drawn, real))
    among = np.sum(pairwise_distances(drawn, drawn)) / (len(drawn) * (len(drawn) - 1))
    return float((2 * across - among - among_real) / among_real)


def trained_errors(run: RunSource, data_dir: str | None, num: int, seed: int = 0) -> dict:
    """Measures every sampler on a trained net: energy distance of its samples from the data, by evaluations."""
    place = f"{run.folder} at step {run.step}, {num} pictures"
    config = run.config
    data = config.data if data_dir is None else dataclasses.replace(config.data, data_dir=data_dir)
    images = data.load(config.model.image_size, config.model.channels)
    real = flat(images.read(np.arange(min(len(images), 4000)))["image"])
    among_real = np.sum(pairwise_distances(real, real)) / (len(real) * (len(real) - 1))
    sets = [real[start : start + num] for start in range(0, 20 * num, num)]
    by_chance = [energy_distance(some, real, among_real) for some in sets]
    keep(place, "real digits", "0", float(np.sqrt(np.mean(np.square(by_chance)))))
    draw, rows = (
        functools.partial(generate, config, run.params("ema"), num=num, batch_size=num, seed=seed),
        cases(file_of(run)),
    )
    for name, budget in tqdm(
        [(name, budget) for budget in TRAINED_BUDGETS for name in rows], desc="trained net"
    ):
        sampler, options = rows[name]
        steps = steps_for(samplers.make(sampler, **options), budget)
        if steps and str(budget) not in measured()[place].get(name, {}):
            sampling = Sampling(sampler=sampler, options=options, steps=steps)
            keep(
                place,
                name,
                str(budget),
                energy_distance(flat(draw(sampling=sampling)[-1]), real, among_real),
            )
            write("trained", trained_table(measured()[place]))
    return measured()[place]


def file_of(run: RunSource) -> Path:
    """Where a run's statistics are."""
    return run.folder / statistics.NAME


def flat(images: np.ndarray) -> np.ndarray:
    """uint8 pictures as rows of numbers in [-1, 1]."""
    return images.reshape(len(images), -1).astype(np.float32) / 127.5 - 1


def measured() -> dict:
    """What was measured so far."""
    return json.loads(MEASURED.read_text()) if MEASURED.exists() else {}


def keep(*path_and_value) -> None:
    """Adds one measurement to those on disk."""
    *path, last, value = path_and_value
    found = measured()
    place = found
    for key in path:
        place = place.setdefault(key, {})
    place[last] = value
    MEASURED.parent.mkdir(exist_ok=True)
    MEASURED.write_text(json.dumps(found, indent=1))


def exact_table() -> str:
    """Markdown: order, evaluations a step, error on the mixture by spacing and evaluations."""
    columns = [f"{spacing}, {n}" for spacing in SPACINGS for n in EXACT_BUDGETS]
    lines = [["sampler", "order", "evaluations a step", *columns], ["---"] * (3 + len(columns))]
    for case, (name, options) in tqdm(cases(mixture_statistics()).items(), desc="exact denoiser"):
        sampler = samplers.make(name, **options)
        order = "adds noise" if adds_noise(sampler) else str(sampler.order)
        calls = f"{sampler.evaluations}" + (
            f", {sum(sampler.startup_evaluations)} more at the start"
            if sampler.startup_evaluations
            else ""
        )
        errors = [
            exact_error(name, options, spacing, n) for spacing in SPACINGS for n in EXACT_BUDGETS
        ]
        lines.append([case, order, calls, *map(cell, errors)])
    floor = cell(float(np.median([wasserstein(drawn_from_mixture(seed)) for seed in range(1, 21)])))
    return markdown([*lines, ["samples of the mixture itself", "", "", *[floor] * len(columns)]])


def trained_table(found: dict) -> str:
    """Markdown: energy distance from the data by evaluations."""
    lines = [["sampler", *map(str, TRAINED_BUDGETS)], ["---"] * (1 + len(TRAINED_BUDGETS))]
    for name in cases(Path()):
        lines.append(
            [name, *(cell(found.get(name, {}).get(str(budget))) for budget in TRAINED_BUDGETS)]
        )
    return markdown(
        [
            *lines,
            ["real digits, by chance", *[cell(found["real digits"]["0"])] * len(TRAINED_BUDGETS)],
        ]
    )


def cell(value: float | None) -> str:
    """A figure of a table."""
    return "" if value is None else f"{value:.4f}"


def markdown(lines: list[list[str]]) -> str:
    """A table of cells."""
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(name: str, table: str) -> None:
    """Puts a table between its markers on the page."""
    found = re.sub(
        f"(<!-- {name} -->\n).*?(<!-- end -->)",
        lambda m: f"{m[1]}{table}\n{m[2]}",
        PAGE.read_text(),
        flags=re.S,
    )
    PAGE.write_text(found)


def main() -> None:
    """Measures, and fills the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ckpt", help="directory of a trained run, such as runs/mnist")
    parser.add_argument("--data-dir", help="where its data are, if not where it was trained")
    parser.add_argument("--num", type=int, default=64, help="pictures drawn by each sampler")
    options = parser.parse_args()
    arguments.set_up_jax(options.num, None, cache=True)
    write("exact", exact_table())
    if options.ckpt:
        write(
            "trained",
            trained_table(trained_errors(open_run(options.ckpt), options.data_dir, options.num)),
        )
    print(PAGE.read_text())


if __name__ == "__main__":
    main()
