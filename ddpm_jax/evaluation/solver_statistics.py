"""Estimate the statistics of DPM-Solver-v3 from a network.

With y = xt / sqrt(alpha_bar), f = (1 - l) y - x0 and ' for the derivative by lambda = log SNR / 2 along the ODE,

    l = E[the diagonal of d sqrt(1 - alpha_bar) eps / dxt]                     Eq. 5 and 58, Zheng et al. 2023
    s, b = argmin E|f' - s f - b|^2                                           Eq. 11 and 60-61

for each number of an image by itself, xt being data with noise. All levels see the same images, noise and signs, so
that the tables are as smooth as the network: l' is a difference of them.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ddpm_jax.config import Config
from ddpm_jax.data.batches import batch_at
from ddpm_jax.devices import parallel
from ddpm_jax.diffusion.prediction import Denoiser, make_denoiser
from ddpm_jax.diffusion.schedule import NoiseSchedule
from ddpm_jax.errors import check
from ddpm_jax.generation.generate import guided_network
from ddpm_jax.models import Params
from ddpm_jax.samplers import initial_noise, sample_keys
from ddpm_jax.samplers.dpm_solver_v3 import Statistics

ROUNDING = 1e-10


class StatisticsBatch(NamedTuple):
    """A batch of images, their noise and random signs, and the denoiser of this batch (its labels are in it)."""

    denoise: Denoiser
    images: Float[Array, "b h w c"]
    noise: Float[Array, "b h w c"]
    signs: Float[Array, "b h w c"]


def statistics_batch(
    keys: Key[Array, " b"], denoise: Denoiser, images: Float[Array, "b h w c"]
) -> StatisticsBatch:
    """Images with the noise and the signs of their keys."""
    draw = jax.vmap(
        lambda key: jax.random.rademacher(
            jax.random.fold_in(key, 1), images.shape[1:], images.dtype
        )
    )
    return StatisticsBatch(denoise, images, initial_noise(keys, images.shape[1:]), draw(keys))


def draw_statistics(
    config: Config, params: Params, num_images: int, batch_size: int, seed: int
) -> list[StatisticsBatch]:
    """At least `num_images` images of the config's data, in full batches, no image twice; the seed says which.

    Raises ValueError where the data have fewer.
    """
    batch_size = parallel.padded_batch_size(batch_size, num_images)
    num = -(-num_images // batch_size) * batch_size
    images = config.data.load(config.model.image_size, config.model.channels)
    check(
        num <= len(images),
        f"--images {num_images} in batches of {batch_size} are more than there are: {len(images):,}",
    )
    batch = batch_at(images, seed, 0, num)
    labels = batch.get("label", np.zeros(num, np.int32))
    parts = []
    for start in range(0, num, batch_size):
        rows = np.arange(start, start + batch_size)
        keys = sample_keys(seed, jnp.asarray(rows))
        keys, x0, label = parallel.shard((keys, batch["image"][rows], labels[rows]))
        network, target = config.objective.network_and_target(
            guided_network(config.model, params, label)
        )
        denoise = make_denoiser(config.objective.noise_schedule, network, target, None)
        parts.append(statistics_batch(keys, denoise, x0))
    return parts


def levels(schedule: NoiseSchedule, count: int) -> np.ndarray:
    """At most `count` timesteps t + 1/2, falling, at even steps of log SNR: between two t its slope is known."""
    log_snr = np.asarray(schedule.log_snr, np.float64)
    log_snr = log_snr[np.isfinite(log_snr)]
    check(
        len(log_snr) > 3, "statistics need a schedule of more than three timesteps with any signal"
    )
    t = np.interp(np.linspace(-log_snr[0], -log_snr[-1], count), -log_snr, np.arange(len(log_snr)))
    return np.unique(np.minimum(np.floor(t), len(log_snr) - 2))[::-1] + 0.5


def estimate(
    schedule: NoiseSchedule,
    parts: Sequence[StatisticsBatch],
    count: int = 128,
    on_level: Callable[[], object] = lambda: None,
) -> Statistics:
    """The statistics at about `count` levels, from all parts together; `on_level()` is called after each."""
    lambdas, moments = [], []
    for t in levels(schedule, count):
        log_snr = np.interp(t, np.arange(schedule.timesteps), schedule.log_snr)
        seen = [_seen(schedule, each, jnp.asarray(t, each.images.dtype)) for each in parts]
        moments.append(
            jax.device_get(_moments(schedule, seen, jnp.asarray(t, parts[0].images.dtype)))
        )
        lambdas.append(log_snr / 2)
        on_level()
    stacked = (np.stack(tables).astype(np.float64) for tables in zip(*moments, strict=True))
    return fit(np.array(lambdas), *stacked)


@jax.jit
def _seen(schedule, part, t):
    """Of each image: y, x0, x0' along the ODE, and the diagonal of d x0 / dxt times signs of mean zero."""
    sqrt_alpha_bar, std = schedule.signal_and_noise(t)
    i = jnp.floor(t).astype(jnp.int32)
    t_by_lambda = 2 / (schedule.log_snr[i + 1] - schedule.log_snr[i])
    xt = sqrt_alpha_bar * part.images + std * part.noise
    x0, push = jax.linearize(lambda xt, t: part.denoise(xt, t).x0, xt, t)
    x_by_lambda = sqrt_alpha_bar * (x0 - sqrt_alpha_bar * xt)  # Eq. 2, as alpha_bar + std^2 = 1
    return (
        xt / sqrt_alpha_bar,
        x0,
        push(x_by_lambda, t_by_lambda),
        part.signs * push(part.signs, jnp.zeros_like(t)),
    )


@jax.jit
def _moments(schedule, seen, t):
    """l, and of f, y and the rest f' + l' y the means, var f, cov(f, y), cov(f, rest), var y."""
    y, x0, x0_by_lambda, diagonal = (jnp.concatenate(each) for each in zip(*seen, strict=True))
    l = 1 - schedule.signal_and_noise(t)[0] * jnp.mean(
        diagonal, 0
    )  # Eq. 58: std eps = xt - sqrt(alpha_bar) x0
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


def integrated(
    lambdas: np.ndarray, l: np.ndarray, s: np.ndarray, b: np.ndarray, p: np.ndarray
) -> Statistics:
    """The statistics with L and S, and the path from `p` at the first level that follows p' = s p + b."""
    L, S = (_solve(lambdas, rate, 0 * rate, 0 * rate, 0 * p) for rate in (l, s))
    return Statistics(
        *(
            np.asarray(table, np.float32)
            for table in (lambdas, l, s, b, L, S, _solve(lambdas, b, s, S, p))
        )
    )


def _solve(lambdas, rate, growth, S, start):
    """F' = growth F + rate from F = start, S being the integral of growth: the trapezoid rule with end slopes."""
    slope = (
        np.gradient(rate, lambdas, axis=0, edge_order=2) - growth * rate
    )  # of the integrand e^-S rate, times e^S
    found = [start]
    for i, width in enumerate(np.diff(lambdas)):
        grown = np.exp(S[i + 1] - S[i])
        trapezoid = width / 2 * (grown * rate[i] + rate[i + 1])
        found.append(
            grown * found[-1] + trapezoid + width**2 / 12 * (grown * slope[i] - slope[i + 1])
        )
    return np.stack(found)
