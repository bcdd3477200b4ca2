"""Which sampler, how many steps? Fills the tables of docs/samplers.md.

    python benchmarks/samplers.py                                       errors on data known in closed form, a minute
    python benchmarks/samplers.py --ckpt runs/mnist --data-dir DIR      also samples of a trained net, most of an hour

What was measured is kept in runs/samplers.json, so that a run that was cut off goes on.
"""

import argparse
import dataclasses
import json
import re
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from scipy.special import ndtr, ndtri
from sklearn.metrics import pairwise_distances
from tqdm import tqdm

from ddpm_jax import command_line, samplers, workdir
from ddpm_jax.checkpoint import find
from ddpm_jax.diffusion import Sampling
from ddpm_jax.exact import mixture_x0
from ddpm_jax.generation import generate
from ddpm_jax.grids import make_grid, times_of
from ddpm_jax.prediction import make_denoiser
from ddpm_jax.schedule import from_betas, linear

PAGE = Path(__file__).parent.parent / "docs" / "samplers.md"
MEASURED = Path("runs/samplers.json")
OPTIONS = {
    "ddpm fixed_large": ("ddpm", {"variance": "fixed_large"}),
    "ddim eta 1": ("ddim", {"eta": 1.0}),
    "edm S_churn 40": ("edm", {"S_churn": 40.0}),
    "pndm without runge_kutta": ("pndm", {"runge_kutta": False}),
    "unipc order 3": ("unipc", {"order": 3}),
}
CASES = {name: (name, {}) for name in samplers.names()} | OPTIONS
EXACT_BUDGETS, TRAINED_BUDGETS = (10, 20, 50), (5, 10, 20, 50, 250)
SPACINGS = ("trailing", "log_snr", "karras")
MEANS, STD, WEIGHTS, POINTS = np.array([-0.9, 0.0, 0.8]), 0.1, np.array([0.5, 0.2, 0.3]), 1 << 14


def steps_for(sampler: samplers.Sampler, evaluations: int) -> int:
    """How many steps so many evaluations allow, 0 if none."""
    return max((evaluations - sampler.extra) // sampler.evaluations, 0)


def exact_error(name: str, options: dict, spacing: str, evaluations: int) -> float | None:
    """Wasserstein-2 distance of samples of one pixel from a mixture of three Gaussians whose x0 is known.

    The noise is the normal distribution's quantiles, so that a deterministic sampler's error is its own.
    """
    sampler, schedule = samplers.make(name, **options), from_betas(linear())
    steps = steps_for(sampler, evaluations)
    if not steps:
        return None
    network = mixture_x0(schedule, *(jnp.asarray(x, jnp.float32) for x in (MEANS.reshape(3, 1, 1, 1), STD, WEIGHTS)))
    denoise = make_denoiser(schedule, network, "x0", None)
    quantiles = (np.arange(POINTS) + 0.5) / POINTS
    xT = jnp.asarray(ndtri(quantiles).reshape(-1, 1, 1, 1), jnp.float32)
    keys, grid = samplers.sample_keys(0, jnp.arange(POINTS)), make_grid(schedule, times_of(schedule, steps, spacing))
    x0 = np.sort(np.asarray(samplers.sample(keys, denoise, sampler, grid, xT), float).reshape(-1))
    return float(np.sqrt(np.mean((x0 - mixture_quantiles(quantiles)) ** 2)))


def mixture_quantiles(quantiles: np.ndarray) -> np.ndarray:
    """Where the mixture's distribution function takes these values, by a fine table of it."""
    x = np.linspace(-3, 3, 200_001)
    return np.interp(quantiles, np.sum(WEIGHTS * ndtr((x[:, None] - MEANS) / STD), 1), x)


def energy_distance(drawn: np.ndarray, real: np.ndarray, among_real: float) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| over E|Y - Y'|, unbiased (Szekely & Rizzo 2013); pictures (n, pixels)."""
    across = np.mean(pairwise_distances(drawn, real))
    among = np.sum(pairwise_distances(drawn, drawn)) / (len(drawn) * (len(drawn) - 1))
    return float((2 * across - among - among_real) / among_real)


def trained_errors(ckpt: str, data_dir: str | None, num: int, seed: int = 0) -> None:
    """Measures every sampler on a trained net: energy distance of its samples from the data."""
    folder, step = find(ckpt)
    config = workdir.load_config(folder, step)
    data = config.data if data_dir is None else dataclasses.replace(config.data, data_dir=data_dir)
    images = data.load(config.model.image_size, config.model.channels)
    real = flat(images.read(np.arange(min(len(images), 4000)))["image"])
    among_real = np.sum(pairwise_distances(real, real)) / (len(real) * (len(real) - 1))
    keep("data", f"{num}", "0", energy_distance(real[:num], real[num:], among_real))
    params = workdir.load_params(config, folder, step, "ema")
    draw = partial(generate, config, params, num=num, batch_size=num, seed=seed)
    for name, budget in tqdm([(name, budget) for budget in TRAINED_BUDGETS for name in CASES], desc="trained net"):
        sampler, steps = CASES[name], steps_for(samplers.make(CASES[name][0], **CASES[name][1]), budget)
        if steps and str(budget) not in measured().get("trained", {}).get(name, {}):
            sampling = Sampling(sampler=sampler[0], options=sampler[1], steps=steps)
            keep("trained", name, str(budget), energy_distance(flat(draw(sampling=sampling)[-1]), real, among_real))


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
    lines = [
        "| sampler | order | evaluations a step | " + " | ".join(f"{s}, {n}" for s in SPACINGS for n in EXACT_BUDGETS)
    ]
    lines += ["| --- " * (3 + len(SPACINGS) * len(EXACT_BUDGETS))]
    for case, (name, options) in tqdm(CASES.items(), desc="exact denoiser"):
        sampler = samplers.make(name, **options)
        calls = f"{sampler.evaluations}" + (f", {sampler.extra} more at the start" if sampler.extra else "")
        errors = [exact_error(name, options, s, n) for s in SPACINGS for n in EXACT_BUDGETS]
        cells = [case, str(sampler.order or "adds noise"), calls, *("" if e is None else f"{e:.4f}" for e in errors)]
        lines.append("| " + " | ".join(cells))
    return "\n".join(f"{line} |" for line in lines)


def trained_table() -> str:
    """Markdown: energy distance from the data by evaluations."""
    found = measured().get("trained", {})
    lines = ["| sampler | " + " | ".join(map(str, TRAINED_BUDGETS)), "| --- " * (1 + len(TRAINED_BUDGETS))]
    for name in CASES:
        values = [found.get(name, {}).get(str(budget)) for budget in TRAINED_BUDGETS]
        lines.append("| " + " | ".join([name, *("" if v is None else f"{v:.4f}" for v in values)]))
    return "\n".join(f"{line} |" for line in lines)


def fill(page: str, name: str, table: str) -> str:
    """The page with the part between its markers replaced."""
    return re.sub(f"(<!-- {name} -->\n).*?(<!-- end -->)", lambda m: f"{m[1]}{table}\n{m[2]}", page, flags=re.S)


def main() -> None:
    """Measures, and fills the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", help="directory of a trained run, such as runs/mnist")
    parser.add_argument("--data-dir", help="where its data are, if not where it was trained")
    parser.add_argument("--num", type=int, default=64, help="pictures drawn by each sampler")
    options = parser.parse_args()
    command_line.set_up_jax(options.num, None, cache=True)
    page = fill(PAGE.read_text(), "exact", exact_table())
    if options.ckpt:
        trained_errors(options.ckpt, options.data_dir, options.num)
    if "trained" in measured():
        page = fill(page, "trained", trained_table())
    PAGE.write_text(page)
    print(page)


if __name__ == "__main__":
    main()
