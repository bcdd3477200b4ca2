"""The ways through the timesteps of diffusers' schedulers, where they differ from the plain grid."""

import dataclasses
from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from ddpm_jax.diffusion.grid import (
    CLEAN_DATA,
    GridRow,
    Spacing,
    check_decreasing,
    grid_from_pairs,
    is_noise_spacing,
    spaced,
    timesteps_for,
)
from ddpm_jax.diffusion.prediction import Network
from ddpm_jax.diffusion.schedule import NoiseSchedule
from ddpm_jax.errors import check

GridKind = Literal["plain", "strides", "strides_to_0", "inner", "inner_to_0", "float"]
GRID_KINDS = get_args(GridKind)
MIN_ALPHA_BAR = 2.0**-24
"""alpha_bar of their last timestep where there is no signal left, which methods in log SNR cannot take."""


def scheduler_grid(
    kind: GridKind,
    schedule: NoiseSchedule,
    steps: int,
    spacing: Spacing,
    offset: int = 0,
    end: int | None = None,
) -> GridRow:
    """The grid of `steps` rows that a scheduler of diffusers walks, its timesteps raised by `offset`.

    strides       from each t to t - T // steps, whatever the spacing             DDIM
    inner         linspace and leading are of steps + 1 timesteps, less the last  DPM-Solver++, UniPC
    strides_to_0  as strides, and the last row leads to the level of t = 0        PNDM
    inner_to_0    as inner, and the last row leads to the level of t = 0          DEIS
    float         linspace is not rounded to whole timesteps                      Euler, Heun, LMS

    `end`, a timestep, has the last row lead elsewhere. Raises ValueError for steps out of range, and for strides where
    the spacing is by noise level.
    """
    if end is None:
        end = 0 if kind.endswith("to_0") else CLEAN_DATA
    check_grid(kind, schedule.timesteps, steps, spacing, offset)
    if kind.startswith("strides"):
        t = check_decreasing(
            schedule.timesteps, spaced(schedule.timesteps, steps, spacing) + offset
        )
        return grid_from_pairs(schedule, t, np.maximum(t - schedule.timesteps // steps, end))
    schedule = _with_signal(schedule)
    t = check_decreasing(schedule.timesteps, _times(kind, schedule, steps, spacing) + offset)
    return grid_from_pairs(schedule, t, np.append(t[1:], end))


def check_grid(kind: GridKind, timesteps: int, steps: int, spacing: Spacing, offset: int) -> None:
    """Raise ValueError where a grid of this kind cannot have these steps of T = `timesteps`."""
    strides = kind.startswith("strides")
    check(
        not (strides and is_noise_spacing(spacing)),
        f"grid {kind} walks equal strides of t, which spacing {spacing} has not: set grid plain",
    )
    inner = kind.startswith("inner") and spacing in ("linspace", "leading")
    check(
        not inner or steps < timesteps,
        f"grid {kind} takes less than T = {timesteps} steps, not {steps}: set steps, or grid plain",
    )
    if offset:
        first = float(spaced(timesteps, steps + inner, spacing)[0]) + offset
        check(
            first < timesteps,
            f"offset {offset} leads beyond the last timestep, {timesteps - 1}: lower it",
        )


def _times(kind: GridKind, schedule: NoiseSchedule, steps: int, spacing: Spacing) -> np.ndarray:
    if kind == "float" and spacing == "linspace":
        return np.linspace(0, schedule.timesteps - 1, max(steps, 2))[::-1][:steps]
    if kind.startswith("inner") and spacing in ("linspace", "leading"):
        return spaced(schedule.timesteps, steps + 1, spacing)[:-1]
    return timesteps_for(schedule, steps, spacing)


def _with_signal(schedule: NoiseSchedule) -> NoiseSchedule:
    """The schedule with its last timestep, if that is pure noise, at LEAST_SIGNAL, for the grid's tables alone."""
    log_alpha = np.asarray(schedule.log_alpha, np.float64)
    if np.isfinite(log_alpha[-1]):
        return schedule
    log_alpha = np.append(log_alpha[:-1], np.log(MIN_ALPHA_BAR) - np.sum(log_alpha[:-1]))
    return dataclasses.replace(schedule, log_alpha=jnp.asarray(log_alpha, jnp.float32))


def noise_scale(kind: GridKind, spacing: Spacing, grid: GridRow):
    """The factor on xT of unit variance: below 1 where diffusers starts from its noise part alone.

    Those are the grids float with any spacing but leading (Euler, Heun, LMS).
    """
    return grid.sqrt_one_minus_alpha_bar[0] if kind == "float" and spacing != "leading" else 1.0


def needs_whole_timesteps(kind: GridKind) -> bool:
    """Whether diffusers rounds the timesteps of this grid before it calls the network."""
    return kind.startswith("inner")


def at_whole_timesteps(network: Network) -> Network:
    """The network called at the nearest whole timestep."""
    return Partial(_at_whole, network if isinstance(network, Partial) else Partial(network))


def _at_whole(network, xt, t):
    return network(xt, jnp.round(t).astype(jnp.int32))
