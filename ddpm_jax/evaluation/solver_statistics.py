"""Estimate the statistics of DPM-Solver-v3 from a network.

With y = xt / sqrt(alpha_bar), f = (1 - l) y - x0, and ' for the derivative along the ODE with
respect to lambda = log SNR / 2,

    l = E[the diagonal of d sqrt(1 - alpha_bar) eps / dxt]           Eq. 5 and 58, Zheng et al. 2023
    s, b = argmin E|f' - s f - b|^2                                  Eq. 11 and 60-61

separately for each pixel and channel, where xt is a noisy image. All levels use the same images,
noise and signs. The tables are then as smooth as the network, and l' is a finite difference.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ddpm_jax.config import Config
from ddpm_jax.data import SAME_DATA, check_labels, check_values
from ddpm_jax.data.batches import batch_at
from ddpm_jax.data.values import LEVELS, Levels, Scales
from ddpm_jax.devices import parallel
from ddpm_jax.diffusion.prediction import Denoiser, make_denoiser
from ddpm_jax.diffusion.schedule import NoiseSchedule
from ddpm_jax.errors import check, check_at_least, check_shape
from ddpm_jax.evaluation.network_batches import network_batches
from ddpm_jax.evaluation.ode_likelihood import random_signs
from ddpm_jax.generation.conditions import check_given_size
from ddpm_jax.models import Params
from ddpm_jax.samplers import initial_noise
from ddpm_jax.samplers.dpm_solver_v3 import Statistics

ROUNDING = 1e-10
"""Below this fraction of the variance of y, the variance of f counts as rounding error."""


class StatisticsBatch(NamedTuple):
    """A batch of images, their noise and random signs, and a denoiser with their condition."""

    denoise: Denoiser
    images: Float[Array, "b h w c"]
    noise: Float[Array, "b h w c"]
    signs: Float[Array, "b h w c"]


def statistics_batch(
    keys: Key[Array, " b"], denoise: Denoiser, images: Float[Array, "b h w c"]
) -> StatisticsBatch:
    """Draw the noise and the signs of each image with its own key."""
    check_shape(images.shape[:1], keys=keys)
    shape = images.shape[1:]  # (h, w, c)
    (signs,) = random_signs(keys, shape, 1)
    return StatisticsBatch(denoise, images, initial_noise(keys, shape), signs)


def draw_batches(
    config: Config,
    params: Params,
    num_images: int,
    batch_size: int,
    seed: int,
    classes: Sequence[str] | None = None,
    values: Levels = LEVELS,
    condition_values: Levels = LEVELS,
) -> list[StatisticsBatch]:
    """Draw at least `num_images` images of the config's data, in full batches.

    No image is drawn twice, and the seed decides which are drawn. Raise ValueError if the data has
    too few images, or other classes or values than those of the network.
    """
    batch_size = parallel.padded_batch_size(batch_size, num_images)
    num_drawn = -(-num_images // batch_size) * batch_size
    images = config.load_images(Scales(values, condition_values))
    check_given_size(config.model, images, SAME_DATA)
    check_labels(images, config.model.num_classes, classes, is_trained=True)
    check_values(images.values, values, SAME_DATA)
    check(
        num_drawn <= len(images),
        f"--images {num_images} takes {num_drawn:,} images in batches of {batch_size}, but the "
        f"data has {len(images):,}: lower --images or --batch-size.",
    )
    batch = batch_at(images, seed, 0, num_drawn)
    schedule = config.objective.noise_schedule
    batches = []
    for keys, x0, network in network_batches(config, params, batch, batch_size, seed):
        network, target = config.objective.network_and_target(network)
        denoise = make_denoiser(schedule, network, target, None)
        batches.append(statistics_batch(keys, denoise, x0))
    return batches


def levels(schedule: NoiseSchedule, num_levels: int) -> np.ndarray:
    """Timesteps t + 1/2 in decreasing order, at most `num_levels`, evenly spaced in log SNR.

    Between two timesteps log SNR is linear in t, so its slope is known. Raise ValueError for a
    schedule that is too short, and unless `num_levels` is at least 3.
    """
    check_at_least(3, num_levels=num_levels)
    log_snr = np.asarray(schedule.log_snr, np.float64)
    log_snr = log_snr[np.isfinite(log_snr)]
    check(
        len(log_snr) > 3,
        f"The statistics need more than three timesteps with signal, not {len(log_snr)}: use a "
        "longer schedule.",
    )
    evenly_spaced = np.linspace(-log_snr[0], -log_snr[-1], num_levels)
    t = np.interp(evenly_spaced, -log_snr, np.arange(len(log_snr)))
    found = np.unique(np.minimum(np.floor(t), len(log_snr) - 2))[::-1] + 0.5
    check(
        len(found) >= 3,
        f"{num_levels} levels fall on only {len(found)} pairs of timesteps: take more levels.",
    )
    return found


def estimate(
    schedule: NoiseSchedule,
    batches: Sequence[StatisticsBatch],
    num_levels: int = 128,
    on_level: Callable[[], object] = lambda: None,
) -> Statistics:
    """Estimate the statistics at at most `num_levels` levels, from all batches together.

    `on_level()` is called after each level.
    """
    lambdas = []
    moments = []
    for t in levels(schedule, num_levels):
        log_snr = np.interp(t, np.arange(schedule.timesteps), schedule.log_snr)
        samples = [_at_level(schedule, each, jnp.asarray(t, each.images.dtype)) for each in batches]
        level = jnp.asarray(t, batches[0].images.dtype)
        moments.append(jax.device_get(_moments(schedule, samples, level)))
        lambdas.append(log_snr / 2)
        on_level()
    stacked = (np.stack(tables).astype(np.float64) for tables in zip(*moments, strict=True))
    return fit(np.array(lambdas), *stacked)


@jax.jit
def _at_level(schedule, batch, t):
    """y, x0, x0' along the ODE and the diagonal of d x0 / d xt, for each image at level t.

    The diagonal is estimated as signs * (d x0 / d xt) signs: the other entries of the Jacobian
    enter with random signs of mean zero.
    """
    sqrt_alpha_bar, std = schedule.signal_and_noise(t)
    i = jnp.floor(t).astype(jnp.int32)
    dt_dlambda = 2 / (schedule.log_snr[i + 1] - schedule.log_snr[i])
    xt = sqrt_alpha_bar * batch.images + std * batch.noise  # (b, h, w, c)
    x0, push_forward = jax.linearize(lambda xt, t: batch.denoise(xt, t).x0, xt, t)
    dx_dlambda = sqrt_alpha_bar * (x0 - sqrt_alpha_bar * xt)  # Eq. 2, as alpha_bar + std^2 = 1
    x0_slope = push_forward(dx_dlambda, dt_dlambda)
    diagonal = batch.signs * push_forward(batch.signs, jnp.zeros_like(t))
    return xt / sqrt_alpha_bar, x0, x0_slope, diagonal


@jax.jit
def _moments(schedule, samples, t):
    """l, the means of f, y and rest, var f, cov(f, y), cov(f, rest) and var y, over all images.

    rest = f' + l' y is the part of f' that can be computed at one level.
    """
    y, x0, x0_slope, diagonal = (jnp.concatenate(each) for each in zip(*samples, strict=True))
    # Eq. 58, with sqrt(1 - alpha_bar) eps = xt - sqrt(alpha_bar) x0.
    l = 1 - schedule.signal_and_noise(t)[0] * jnp.mean(diagonal, 0)  # (h, w, c)
    f = (1 - l)[None] * y - x0
    rest = -(1 - l)[None] * (y - x0) - x0_slope  # Eq. 62
    f_mean, y_mean, rest_mean = (jnp.mean(each, 0) for each in (f, y, rest))
    df = f - f_mean[None]
    dy = y - y_mean[None]
    drest = rest - rest_mean[None]
    pairs = (df, df), (df, dy), (df, drest), (dy, dy)
    return l, f_mean, y_mean, rest_mean, *(jnp.mean(a * b, 0) for a, b in pairs)


def fit(lambdas: np.ndarray, l, f, y, rest, var_f, cov_fy, cov_f_rest, var_y) -> Statistics:
    """The statistics from the moments of `_moments` at all levels (n, h, w, c), in float64.

    f, y and rest are means. s is 0 where f varies only by rounding errors.
    """
    l_slope = np.gradient(l, lambdas, axis=0, edge_order=2)
    varies = var_f > ROUNDING * var_y
    cov_f_slope = cov_f_rest - l_slope * cov_fy  # cov(f, f')
    s = np.where(varies, cov_f_slope, 0) / np.where(varies, var_f, 1)
    b = (rest - l_slope * y) - s * f
    return with_integrals(lambdas, l, s, b, f[0])


def with_integrals(
    lambdas: np.ndarray, l: np.ndarray, s: np.ndarray, b: np.ndarray, p_start: np.ndarray
) -> Statistics:
    """Complete l, s and b with L, S and the solution of p' = s p + b from p_start at lambdas[0]."""
    L, S = (_solve(lambdas, rate, 0 * rate, 0 * rate, 0 * p_start) for rate in (l, s))
    p = _solve(lambdas, b, s, S, p_start)
    return Statistics(*(np.asarray(table, np.float32) for table in (lambdas, l, s, b, L, S, p)))


def _solve(lambdas, rate, growth, S, start):
    """Solve F' = growth F + rate from F = start, where S is the integral of growth.

    This is the trapezoid rule, corrected by the slopes at both ends to order 4.
    """
    # The slope of the integrand e^-S rate, times e^S.
    slope = np.gradient(rate, lambdas, axis=0, edge_order=2) - growth * rate
    values = [start]
    for i, width in enumerate(np.diff(lambdas)):
        grown = np.exp(S[i + 1] - S[i])
        trapezoid = width / 2 * (grown * rate[i] + rate[i + 1])
        correction = width**2 / 12 * (grown * slope[i] - slope[i + 1])
        values.append(grown * values[-1] + trapezoid + correction)
    return np.stack(values)
