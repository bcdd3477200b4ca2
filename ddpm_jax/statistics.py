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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from tqdm import tqdm

from ddpm_jax import command_line, on_run, parallel
from ddpm_jax.config import Config
from ddpm_jax.data import batch_at
from ddpm_jax.errors import check
from ddpm_jax.files import atomic_file
from ddpm_jax.generation import network_of
from ddpm_jax.models import Params
from ddpm_jax.on_run import InBatches
from ddpm_jax.prediction import Denoiser, make_denoiser
from ddpm_jax.samplers import initial_noise, sample_keys
from ddpm_jax.samplers.dpm_solver_v3 import Statistics
from ddpm_jax.schedule import NoiseSchedule

NAME = "statistics.npz"
ROUNDING = 1e-10


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
    wanted, run = on_run.parse(Estimation, args, "python -m ddpm_jax.statistics")
    objective = run.config.objective
    wanted.set_up_jax(wanted.images)
    schedule = objective.noise_schedule()
    parts = parts_of(run.config, run.params(wanted.weights), wanted)
    bar = tqdm(total=len(levels(schedule, wanted.levels)), unit="level", desc=f"{wanted.images} images")
    with wanted.shortage_named(run.config.model), bar:
        found = estimate(schedule, parts, wanted.levels, bar.update)
    print(save(found, wanted.out or run.folder / NAME))


class Part(NamedTuple):
    """A batch of images, their noise and random signs, and the denoiser of this batch (its labels are in it)."""

    denoise: Denoiser
    images: Float[Array, "b h w c"]
    noise: Float[Array, "b h w c"]
    signs: Float[Array, "b h w c"]


def part(keys: Key[Array, " b"], denoise: Denoiser, images: Float[Array, "b h w c"]) -> Part:
    """Images with the noise and the signs of their keys."""
    draw = jax.vmap(lambda key: jax.random.rademacher(jax.random.fold_in(key, 1), images.shape[1:], images.dtype))
    return Part(denoise, images, initial_noise(keys, images.shape[1:]), draw(keys))


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
        found.append(part(keys, make_denoiser(objective.noise_schedule(), network, target, None), images))
    return found


def levels(schedule: NoiseSchedule, count: int) -> np.ndarray:
    """At most `count` timesteps t + 1/2, falling, at even steps of log SNR: between two t its slope is known."""
    log_snr = np.asarray(schedule.log_snr, np.float64)
    log_snr = log_snr[np.isfinite(log_snr)]
    check(len(log_snr) > 3, "statistics need a schedule of more than three timesteps with any signal")
    t = np.interp(np.linspace(-log_snr[0], -log_snr[-1], count), -log_snr, np.arange(len(log_snr)))
    return np.unique(np.minimum(np.floor(t), len(log_snr) - 2))[::-1] + 0.5


def estimate(
    schedule: NoiseSchedule, parts: Sequence[Part], count: int = 128, on_level: Callable[[], object] = lambda: None
) -> Statistics:
    """The statistics at about `count` levels, from all parts together; `on_level()` is called after each."""
    lambdas, moments = [], []
    for t in levels(schedule, count):
        log_snr = np.interp(t, np.arange(schedule.timesteps), schedule.log_snr)
        seen = [_seen(schedule, each, jnp.asarray(t, each.images.dtype)) for each in parts]
        moments.append(jax.device_get(_moments(schedule, seen, jnp.asarray(t, parts[0].images.dtype))))
        lambdas.append(log_snr / 2)
        on_level()
    stacked = (np.stack(tables).astype(np.float64) for tables in zip(*moments, strict=True))
    return fit(np.array(lambdas), *stacked)


@jax.jit
def _seen(schedule, part, t):
    """Of each image: y, x0, x0' along the ODE, and the diagonal of d x0 / dxt times signs of mean zero."""
    sqrt_alpha_bar, std = schedule.at(t)
    i = jnp.floor(t).astype(jnp.int32)
    t_by_lambda = 2 / (schedule.log_snr[i + 1] - schedule.log_snr[i])
    xt = sqrt_alpha_bar * part.images + std * part.noise
    x0, push = jax.linearize(lambda xt, t: part.denoise(xt, t).x0, xt, t)
    x_by_lambda = sqrt_alpha_bar * (x0 - sqrt_alpha_bar * xt)  # Eq. 2, as alpha_bar + std^2 = 1
    return xt / sqrt_alpha_bar, x0, push(x_by_lambda, t_by_lambda), part.signs * push(part.signs, jnp.zeros_like(t))


@jax.jit
def _moments(schedule, seen, t):
    """l, and of f, y and the rest f' + l' y the means, var f, cov(f, y), cov(f, rest), var y."""
    y, x0, x0_by_lambda, diagonal = (jnp.concatenate(each) for each in zip(*seen, strict=True))
    l = 1 - schedule.at(t)[0] * jnp.mean(diagonal, 0)  # Eq. 58: std eps = xt - sqrt(alpha_bar) x0
    f = (1 - l)[None] * y - x0
    rest = -(1 - l)[None] * (y - x0) - x0_by_lambda  # Eq. 62
    means = [jnp.mean(each, 0) for each in (f, y, rest)]
    df, dy, drest = (each - mean[None] for each, mean in zip((f, y, rest), means, strict=True))
    return l, *means, *(jnp.mean(a * b, 0) for a, b in ((df, df), (df, dy), (df, drest), (dy, dy)))


def fit(lambdas: np.ndarray, l, f, y, rest, var_f, cov_fy, cov_f_rest, var_y) -> Statistics:
    """The statistics of these moments (n, h, w, c), in float64; s is 0 where f varies by no more than rounding."""
    slope = np.gradient(l, lambdas, axis=0, edge_order=2)
    varies = var_f > ROUNDING * var_y
    s = np.where(varies, cov_f_rest - slope * cov_fy, 0) / np.where(varies, var_f, 1)
    return integrated(lambdas, l, s, (rest - slope * y) - s * f, f[0])


def integrated(lambdas: np.ndarray, l: np.ndarray, s: np.ndarray, b: np.ndarray, p: np.ndarray) -> Statistics:
    """The statistics with L and S, and the path from `p` at the first level that follows p' = s p + b."""
    L, S = (_solve(lambdas, rate, 0 * rate, 0 * rate, 0 * p) for rate in (l, s))
    return Statistics(
        *(np.asarray(table, np.float32) for table in (lambdas, l, s, b, L, S, _solve(lambdas, b, s, S, p)))
    )


def _solve(lambdas, rate, growth, S, start):
    """F' = growth F + rate from F = start, S being the integral of growth: the trapezoid rule with end slopes."""
    slope = np.gradient(rate, lambdas, axis=0, edge_order=2) - growth * rate  # of the integrand e^-S rate, times e^S
    found = [start]
    for i, width in enumerate(np.diff(lambdas)):
        grown = np.exp(S[i + 1] - S[i])
        trapezoid = width / 2 * (grown * rate[i] + rate[i + 1])
        found.append(grown * found[-1] + trapezoid + width**2 / 12 * (grown * slope[i] - slope[i + 1]))
    return np.stack(found)


def save(statistics: Statistics, path: Path) -> Path:
    """Leaves the statistics as a file, for `--sampler.statistics`."""
    with atomic_file(path) as file:
        np.savez(file, **statistics._asdict())
    return path


if __name__ == "__main__":
    with command_line.one_line_errors("--debug" in sys.argv):
        main(sys.argv[1:])
