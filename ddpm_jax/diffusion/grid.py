"""Grids of timesteps for samplers: one row per step, with the noise levels at both its ends.

Rows are built on the host in float64 from log(alpha_bar). A row's beta covers its whole stride,
1 - alpha_bar / alpha_bar_next, so strides of any length are exact. Only `one_step` and
`GridRow.from_level` compute rows on the device, in float32.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from ddpm_jax.diffusion.schedule import NoiseSchedule, table_at
from ddpm_jax.errors import check, check_choice

Spacing = Literal["trailing", "leading", "linspace", "karras", "log_snr"]

RHO = 7.0
"""rho of the spacing karras (Eq. 5, Karras et al. 2022)."""

CLEAN_DATA = -1
"""The timestep of clean data, alpha_bar = 1. A row may end there."""


class GridRow(NamedTuple):
    """One step of a sampler: the noise levels at `t` and at the next timestep.

    A grid is a GridRow of arrays (steps,). The next timestep is less noisy, except in rows that add
    noise (RePaint) or invert an image (DDIM). By default the last row leads to clean data, where
    `sqrt_alpha_bar_next` is 1, so that one scan runs the last step too.

    `i` is the index of the row and `steps` the number of rows in the whole grid.
    `beta` is 1 - alpha_bar / alpha_bar_next, for the whole stride.
    `h` is (log_snr_next - log_snr) / 2, the step of exponential integrators. It is infinite if one
    end of the row is clean data or pure noise.
    `schedule` is the same for all rows. Samplers that evaluate within a step need it, and so do
    learned variances.
    """

    i: Int[Array, "*steps"]
    steps: Int[Array, "*steps"]
    t: Num[Array, "*steps"]
    t_next: Num[Array, "*steps"]
    sqrt_alpha_bar: Float[Array, "*steps"]
    sqrt_one_minus_alpha_bar: Float[Array, "*steps"]
    sqrt_alpha_bar_next: Float[Array, "*steps"]
    sqrt_one_minus_alpha_bar_next: Float[Array, "*steps"]
    beta: Float[Array, "*steps"]
    h: Float[Array, "*steps"]
    schedule: NoiseSchedule | None = None

    @property
    def sigma(self) -> Float[Array, "*steps"]:
        """sqrt(1 - alpha_bar) / sqrt(alpha_bar)."""
        return self.sqrt_one_minus_alpha_bar / self.sqrt_alpha_bar

    @property
    def sigma_next(self) -> Float[Array, "*steps"]:
        """sigma at the next timestep; 0 for clean data."""
        return self.sqrt_one_minus_alpha_bar_next / self.sqrt_alpha_bar_next

    @property
    def log_snr(self) -> Float[Array, "*steps"]:
        """log(alpha_bar / (1 - alpha_bar))."""
        return -2 * jnp.log(self.sigma)

    @property
    def t_next_clamped(self) -> Num[Array, "*steps"]:
        """max(t_next, 0), a valid timestep for evaluations whose weight is 0 at clean data."""
        return jnp.maximum(self.t_next, 0)

    def from_level(self, log_snr: Float[Array, ""]) -> "GridRow":
        """This row with its start moved to a log SNR within the schedule, and the same end."""
        assert self.schedule is not None
        t = self.schedule.timestep_at(log_snr)
        sqrt_alpha_bar, sqrt_one_minus_alpha_bar = self.schedule.signal_and_noise(t)
        log_snr_next = self.log_snr + 2 * self.h
        return self._replace(
            t=t,
            sqrt_alpha_bar=sqrt_alpha_bar,
            sqrt_one_minus_alpha_bar=sqrt_one_minus_alpha_bar,
            beta=1 - (sqrt_alpha_bar / self.sqrt_alpha_bar_next) ** 2,
            h=log_snr_next / 2 + jnp.log(sqrt_one_minus_alpha_bar / sqrt_alpha_bar),
        )

    def split(self, parts: int) -> "list[GridRow]":
        """The grid split into `parts` grids of equal length."""
        tables = [np.split(np.asarray(table), parts) for table in self[:-1]]
        grids = [GridRow(*part) for part in zip(*tables, strict=True)]
        return [grid._replace(schedule=self.schedule) for grid in grids]

    def row(self, i: int) -> "GridRow":
        """The i-th row of the grid."""
        row = jax.tree.map(lambda table: table[i], self._replace(schedule=None))
        return row._replace(schedule=self.schedule)


@partial(jax.jit, inline=True)
def one_step(schedule: NoiseSchedule, t: Int[Array, " b"]) -> GridRow:
    """The rows from each t to t - 1, and from t = 0 to clean data. Raise ValueError for float t."""
    check(
        jnp.issubdtype(t.dtype, jnp.integer),
        f"A step between timesteps needs integers for t, not {t.dtype}: cast it.",
    )
    one = jnp.ones(1, jnp.float32)
    zero = jnp.zeros(1, jnp.float32)
    sqrt_alpha_bar, sqrt_one_minus_alpha_bar = schedule.signal_and_noise(t)
    # With clean data in front of a table, index t holds the value at t - 1.
    signal_next = jnp.concatenate([one, schedule.sqrt_alpha_bar])
    noise_next = jnp.concatenate([zero, schedule.sqrt_one_minus_alpha_bar])
    h = jnp.diff(schedule.log_snr, prepend=jnp.inf) / -2
    return GridRow(
        i=t,
        steps=jnp.full_like(t, schedule.timesteps),
        t=t,
        t_next=t - 1,
        sqrt_alpha_bar=sqrt_alpha_bar,
        sqrt_one_minus_alpha_bar=sqrt_one_minus_alpha_bar,
        sqrt_alpha_bar_next=table_at(signal_next, t),
        sqrt_one_minus_alpha_bar_next=table_at(noise_next, t),
        beta=table_at(schedule.beta, t),
        h=table_at(h, t),
    )


def is_noise_spacing(spacing: str) -> bool:
    """Whether a spacing places timesteps by noise level. Raise ValueError for an unknown one."""
    check_choice(get_args(Spacing), spacing=spacing)
    return spacing in ("karras", "log_snr")


def spaced(timesteps: int, steps: int, spacing: Spacing = "trailing") -> np.ndarray:
    """`steps` distinct timesteps in 0..T-1, from noise to data, where T is `timesteps`.

    The spacings are from Table 2, Lin et al. 2024. trailing: starts at T-1. linspace: starts at T-1
    and ends at 0; a single step is T-1. leading: ends at 0 and starts at (steps - 1) (T // steps),
    which for some numbers of steps is far from noise: T/2 for T/2 + 1 steps, 0 for one.
    Raise ValueError unless 1 <= steps <= timesteps, and for any other spacing.
    """
    check(
        not is_noise_spacing(spacing),
        f"Spacing {spacing} is by noise level: use spaced_by_noise or timesteps_for.",
    )
    check(
        1 <= steps <= timesteps,
        "The number of sampling steps must be between 1 and the schedule's "
        f"T = {timesteps}, not {steps}.",
    )
    if spacing == "trailing":
        t = np.arange(timesteps, 0, -timesteps / steps)[:steps]
        return np.round(t).astype(int) - 1
    if spacing == "linspace":
        # A linspace of one point is its lower end, so a single step takes the first of two points.
        t = np.linspace(0, timesteps - 1, max(steps, 2))[::-1][:steps]
        return np.round(t).astype(int)
    return np.arange(steps)[::-1] * (timesteps // steps)


def spaced_by_noise(schedule: NoiseSchedule, steps: int, spacing: Spacing) -> np.ndarray:
    """`steps` float timesteps in [0, T-1], from the noisiest one with any signal down to t = 0.

    log_snr: equal steps of log SNR (Lu et al. 2022).
    karras: equal steps of sigma^(1/rho), rho = 7 (Eq. 5, Karras et al. 2022).
    Raise ValueError unless steps is at least 1, and for any other spacing.
    """
    check(
        is_noise_spacing(spacing),
        f"Spacing {spacing} is not by noise level: use spaced or timesteps_for.",
    )
    check(steps >= 1, f"The number of sampling steps must be at least 1, not {steps}.")
    log_snr = _log_snr(_log_alpha_bar(schedule))
    with_signal = log_snr[np.isfinite(log_snr)]
    highest = with_signal[0]
    lowest = with_signal[-1]
    if spacing == "log_snr":
        levels = np.linspace(lowest, highest, steps)
    else:
        # sigma = exp(-log_snr / 2)
        first = np.exp(-lowest / 2 / RHO)
        last = np.exp(-highest / 2 / RHO)
        levels = -2 * RHO * np.log(np.linspace(first, last, steps))
        # Rounding differs between CPUs. Just above 0, the last t would make a row of no length.
        levels[-1] = highest
        levels[0] = lowest
    return np.interp(-levels, -log_snr, np.arange(schedule.timesteps))


def timesteps_for(schedule: NoiseSchedule, steps: int, spacing: Spacing) -> np.ndarray:
    """`steps` timesteps in any spacing. Raise ValueError for a number of steps out of range."""
    if is_noise_spacing(spacing):
        return spaced_by_noise(schedule, steps, spacing)
    return spaced(schedule.timesteps, steps, spacing)


def make_grid(
    schedule: NoiseSchedule, t: Sequence[float] | np.ndarray, end: int | float = CLEAN_DATA
) -> GridRow:
    """The grid of the timesteps `t` (steps,), whose last row leads to `end`.

    `t` decreases strictly within [0, T-1]; float timesteps are interpolated in log SNR. `end` is
    clean data or a timestep. Build the grid outside jit and pass it in as an argument.
    Raise ValueError for timesteps that do not decrease or are out of range, and for another end.
    """
    t = check_decreasing(schedule.timesteps, t)
    check(
        end == CLEAN_DATA or 0 <= end <= float(t[-1]),
        f"A grid ends at clean data ({CLEAN_DATA}) or within 0..{t[-1]}, not at {end}.",
    )
    return grid_from_pairs(schedule, t, np.append(t[1:], end))


def check_decreasing(timesteps: int, t: Sequence[float] | np.ndarray) -> np.ndarray:
    """`t` as an array. Raise ValueError unless it decreases strictly within [0, timesteps - 1]."""
    t = np.asarray(t)
    # Every comparison with NaN is false, so NaN is refused too.
    if not (t.size and np.all(t[1:] < t[:-1]) and t[0] <= timesteps - 1 and t[-1] >= 0):
        given = str(t.tolist())[:200]
        last = timesteps - 1
        raise ValueError(f"The timesteps must decrease strictly within 0..{last}, not {given}.")
    return t


def grid_from_pairs(
    schedule: NoiseSchedule, t: Sequence[float] | np.ndarray, t_next: Sequence[float] | np.ndarray
) -> GridRow:
    """The grid of rows from each `t` in [0, T-1] to its `t_next`.

    `t_next` may be CLEAN_DATA, or noisier than `t`.
    """
    t = np.asarray(t)
    t_next = np.asarray(t_next)
    log_alpha_bar = _log_alpha_bar_at(schedule, t)
    log_alpha_bar_next = _log_alpha_bar_at(schedule, t_next)
    h = (_log_snr(log_alpha_bar_next) - _log_snr(log_alpha_bar)) / 2
    dtype = schedule.beta.dtype
    t_dtype = jnp.int32 if np.issubdtype(np.result_type(t, t_next), np.integer) else dtype
    return GridRow(
        i=jnp.arange(t.size, dtype=jnp.int32),
        steps=jnp.full(t.size, t.size, jnp.int32),
        t=jnp.asarray(t, t_dtype),
        t_next=jnp.asarray(t_next, t_dtype),
        sqrt_alpha_bar=jnp.asarray(np.exp(0.5 * log_alpha_bar), dtype),
        sqrt_one_minus_alpha_bar=jnp.asarray(np.sqrt(-np.expm1(log_alpha_bar)), dtype),
        sqrt_alpha_bar_next=jnp.asarray(np.exp(0.5 * log_alpha_bar_next), dtype),
        sqrt_one_minus_alpha_bar_next=jnp.asarray(np.sqrt(-np.expm1(log_alpha_bar_next)), dtype),
        beta=jnp.asarray(-np.expm1(log_alpha_bar - log_alpha_bar_next), dtype),
        h=jnp.asarray(h, dtype),
        schedule=schedule,
    )


def _log_alpha_bar(schedule: NoiseSchedule) -> np.ndarray:
    return np.cumsum(np.asarray(schedule.log_alpha, np.float64))


def _log_snr(log_alpha_bar: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return log_alpha_bar - np.log(-np.expm1(log_alpha_bar))


def _log_alpha_bar_at(schedule: NoiseSchedule, t: np.ndarray) -> np.ndarray:
    table = _log_alpha_bar(schedule)
    if np.issubdtype(t.dtype, np.integer):
        log_alpha_bar = table[t]
    else:
        log_snr = np.interp(t, np.arange(schedule.timesteps), _log_snr(table))
        log_alpha_bar = -np.logaddexp(0.0, -log_snr)
    return np.where(t == CLEAN_DATA, 0.0, log_alpha_bar)
