"""The grid of timesteps that a sampler walks: one row a step, with the tables of both its ends.

Rows are built on the host in float64 from log(alpha_bar), so any stride is right by construction: its beta is
1 - alpha_bar / alpha_bar_next, and no difference of float32 tables is taken.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from ddpm_jax.diffusion.schedule import NoiseSchedule
from ddpm_jax.errors import check

Spacing = Literal["trailing", "leading", "linspace", "karras", "log_snr"]
RHO = 7.0

CLEAN_DATA = -1
"""The timestep of clean data, alpha_bar = 1, as the end of a row."""


class GridRow(NamedTuple):
    """One step of a walk: the tables at `t` and at the next timestep, which is nearer the data unless a walk turns.

    A grid is a Row of arrays (steps,). The next of its last row is clean data, `sqrt_alpha_bar_next = 1`, so no
    sampler needs a branch for the last step. `beta = 1 - alpha_bar / alpha_bar_next` is that of the whole stride.
    `h = (log_snr_next - log_snr) / 2` is the step in the variable of exponential integrators, infinite at clean data
    and at pure noise. `steps` is the number of rows of the whole grid. `schedule`, the same for all rows, is where a
    method asks for levels within a step.
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
        """The same at the next timestep, 0 for clean data."""
        return self.sqrt_one_minus_alpha_bar_next / self.sqrt_alpha_bar_next

    @property
    def log_snr(self) -> Float[Array, "*steps"]:
        """log(alpha_bar / (1 - alpha_bar))."""
        return -2 * jnp.log(self.sigma)

    @property
    def t_next_clamped(self) -> Num[Array, "*steps"]:
        """t_next where a network can be asked: 0 for clean data, for evaluations that get no weight there."""
        return jnp.maximum(self.t_next, 0)

    def from_level(self, log_snr: Float[Array, ""]) -> "GridRow":
        """The row that leads from another level, within the schedule, to this row's end."""
        assert self.schedule is not None
        t = self.schedule.timestep_at(log_snr)
        a, b = self.schedule.signal_and_noise(t)
        log_snr_next = self.log_snr + 2 * self.h
        beta = 1 - (a / self.sqrt_alpha_bar_next) ** 2
        return self._replace(
            t=t,
            sqrt_alpha_bar=a,
            sqrt_one_minus_alpha_bar=b,
            beta=beta,
            h=log_snr_next / 2 + jnp.log(b / a),
        )

    def split(self, parts: int) -> "list[GridRow]":
        """A grid in equal parts."""
        tables = [np.split(np.asarray(table), parts) for table in self[:-1]]
        return [
            GridRow(*part)._replace(schedule=self.schedule) for part in zip(*tables, strict=True)
        ]

    def row(self, i: int) -> "GridRow":
        """The i-th row of a grid."""
        return jax.tree.map(lambda table: table[i], self._replace(schedule=None))._replace(
            schedule=self.schedule
        )


def one_step(schedule: NoiseSchedule, t: Int[Array, " b"]) -> GridRow:
    """The rows that lead from each t to t - 1, and from 0 to clean data."""
    one, zero = jnp.ones(1, jnp.float32), jnp.zeros(1, jnp.float32)
    sqrt_alpha_bar_next = jnp.concatenate([one, schedule.sqrt_alpha_bar])[t]
    sqrt_one_minus_alpha_bar_next = jnp.concatenate([zero, schedule.sqrt_one_minus_alpha_bar])[t]
    h = jnp.diff(schedule.log_snr, prepend=jnp.inf)[t] / -2
    levels = *schedule.signal_and_noise(t), sqrt_alpha_bar_next, sqrt_one_minus_alpha_bar_next
    return GridRow(t, jnp.full_like(t, schedule.timesteps), t, t - 1, *levels, schedule.beta[t], h)


def is_noise_spacing(spacing: str) -> bool:
    """Whether a spacing places timesteps by noise level; raises ValueError, with the names, for one there is not."""
    check(
        spacing in get_args(Spacing),
        f"unknown spacing {spacing!r}; there are: {', '.join(get_args(Spacing))}",
    )
    return spacing in ("karras", "log_snr")


def spaced(timesteps: int, steps: int, spacing: Spacing = "trailing") -> np.ndarray:
    """`steps` distinct timesteps of 0..timesteps-1, from noise to data (Table 2, Lin et al. 2024).

    trailing: starts at T-1. leading: ends at 0; for few steps it starts below T-1. linspace: both ends.
    Raises ValueError unless 1 <= steps <= timesteps, and for another spacing.
    """
    check(
        not is_noise_spacing(spacing),
        f"{spacing} is by noise level: its timesteps are those of times_of",
    )
    check(
        1 <= steps <= timesteps,
        f"steps must be between 1 and the schedule's T = {timesteps}, not {steps}",
    )
    if spacing == "trailing":
        return np.round(np.arange(timesteps, 0, -timesteps / steps)[:steps]).astype(int) - 1
    if spacing == "linspace":
        return np.round(np.linspace(0, timesteps - 1, max(steps, 2))[::-1][:steps]).astype(int)
    return np.arange(steps)[::-1] * (timesteps // steps)


def spaced_by_noise(schedule: NoiseSchedule, steps: int, spacing: Spacing) -> np.ndarray:
    """`steps` float timesteps in [0, T-1] from the noisiest level with any signal to the least noisy one.

    log_snr: at equal steps of log SNR (Lu et al. 2022). karras: at equal steps of sigma^(1/rho), rho = 7 (Eq. 5,
    Karras et al. 2022). Raises ValueError unless steps is at least 1, and for another spacing.
    """
    check(
        is_noise_spacing(spacing),
        f"{spacing} is not by noise level: its timesteps are those of spaced",
    )
    check(steps >= 1, f"steps must be at least 1, not {steps}")
    log_snr = _log_snr(_log_alpha_bar(schedule))
    with_signal = log_snr[np.isfinite(log_snr)]
    highest, lowest = with_signal[0], with_signal[-1]
    if spacing == "log_snr":
        wanted = np.linspace(lowest, highest, steps)
    else:
        wanted = (
            -2
            * RHO
            * np.log(np.linspace(np.exp(-lowest / 2 / RHO), np.exp(-highest / 2 / RHO), steps))
        )
    return np.interp(-wanted, -log_snr, np.arange(schedule.timesteps))


def timesteps_for(schedule: NoiseSchedule, steps: int, spacing: Spacing) -> np.ndarray:
    """The timesteps of `steps` steps in any spacing; raises ValueError for steps out of range."""
    if is_noise_spacing(spacing):
        return spaced_by_noise(schedule, steps, spacing)
    return spaced(schedule.timesteps, steps, spacing)


def make_grid(
    schedule: NoiseSchedule, t: Sequence[float] | np.ndarray, end: int = CLEAN_DATA
) -> GridRow:
    """The grid that walks the timesteps `t` (steps,), strictly falling within [0, T-1], and ends in clean data.

    `end`, a timestep, has it end there instead. Float timesteps are placed by interpolation in log SNR. The grid is
    built outside jit and passed in as an argument. Raises ValueError for timesteps that do not fall or lie outside.
    """
    t = check_decreasing(schedule.timesteps, t)
    return grid_from_pairs(schedule, t, np.append(t[1:], end))


def check_decreasing(timesteps: int, t: Sequence[float] | np.ndarray) -> np.ndarray:
    """`t` as an array; raises ValueError unless it falls strictly within [0, timesteps - 1]."""
    t = np.asarray(t)
    if not (
        t.size and np.all(np.diff(t) < 0) and t[0] <= timesteps - 1 and t[-1] >= 0
    ):  # refuses NaN
        raise ValueError(
            f"timesteps must fall strictly within 0..{timesteps - 1}, not {str(t.tolist())[:200]}"
        )
    return t


def grid_from_pairs(
    schedule: NoiseSchedule, t: Sequence[float] | np.ndarray, t_next: Sequence[float] | np.ndarray
) -> GridRow:
    """A grid of any steps: from each `t` in [0, T-1] to its `t_next`, which may be CLEAN, or noisier than t."""
    t, t_next = np.asarray(t), np.asarray(t_next)
    here, after = _log_alpha_bar_at(schedule, t), _log_alpha_bar_at(schedule, t_next)
    kind = jnp.int32 if np.issubdtype(t.dtype, np.integer) else schedule.beta.dtype
    return GridRow(
        i=jnp.arange(t.size, dtype=jnp.int32),
        steps=jnp.full(t.size, t.size, jnp.int32),
        t=jnp.asarray(t, kind),
        t_next=jnp.asarray(t_next, kind),
        sqrt_alpha_bar=jnp.asarray(np.exp(0.5 * here), schedule.beta.dtype),
        sqrt_one_minus_alpha_bar=jnp.asarray(np.sqrt(-np.expm1(here)), schedule.beta.dtype),
        sqrt_alpha_bar_next=jnp.asarray(np.exp(0.5 * after), schedule.beta.dtype),
        sqrt_one_minus_alpha_bar_next=jnp.asarray(np.sqrt(-np.expm1(after)), schedule.beta.dtype),
        beta=jnp.asarray(-np.expm1(here - after), schedule.beta.dtype),
        h=jnp.asarray((_log_snr(after) - _log_snr(here)) / 2, schedule.beta.dtype),
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
        found = table[t]
    else:
        log_snr = np.interp(t, np.arange(schedule.timesteps), _log_snr(table))
        found = -np.logaddexp(0.0, -log_snr)
    return np.where(t == CLEAN_DATA, 0.0, found)
