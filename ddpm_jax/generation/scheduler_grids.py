"""Grids of diffusers' schedulers that differ from the plain grid."""

import dataclasses
from typing import Literal

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
MIN_ALPHA_BAR = 2.0**-24
"""alpha_bar in place of 0 (pure noise), where log SNR would be infinite."""


def scheduler_grid(
    kind: GridKind,
    schedule: NoiseSchedule,
    steps: int,
    spacing: Spacing,
    offset: int = 0,
    end: int | None = None,
) -> GridRow:
    """The grid of a diffusers scheduler with `steps` rows and timesteps raised by `offset`.

    strides       from each t to t - T // steps, with any spacing          DDIM
    inner         linspace and leading have steps + 1 timesteps, and
                  the last is dropped                                      DPM-Solver++, UniPC
    strides_to_0  as strides, but the last row ends at the level of t = 0  PNDM
    inner_to_0    as inner, but the last row ends at the level of t = 0    DEIS
    float         linspace is not rounded to whole timesteps               Euler, Heun, LMS

    `end`, a timestep, replaces the end of the last row. Raise ValueError for steps out of range,
    and for strides with a spacing by noise level.
    """
    if end is None:
        end = 0 if kind.endswith("to_0") else CLEAN_DATA
    check_grid(kind, schedule.timesteps, steps, spacing, offset)
    if kind.startswith("strides"):
        t = spaced(schedule.timesteps, steps, spacing) + offset
        t = check_decreasing(schedule.timesteps, t)
        return grid_from_pairs(schedule, t, np.maximum(t - schedule.timesteps // steps, end))
    schedule = _replace_pure_noise(schedule)
    t = _timesteps(kind, schedule, steps, spacing) + offset
    t = check_decreasing(schedule.timesteps, t)
    return grid_from_pairs(schedule, t, np.append(t[1:], end))


def check_grid(kind: GridKind, timesteps: int, steps: int, spacing: Spacing, offset: int) -> None:
    """Raise ValueError unless a grid of this kind exists for these steps and T = `timesteps`."""
    strides = kind.startswith("strides")
    check(
        not (strides and is_noise_spacing(spacing)),
        f"Grid {kind} takes equal strides of t, and spacing {spacing} has none: set grid plain.",
    )
    inner = kind.startswith("inner") and spacing in ("linspace", "leading")
    check(
        not inner or steps < timesteps,
        f"Grid {kind} takes fewer than T = {timesteps} steps, not {steps}: "
        "set fewer steps, or grid plain.",
    )
    if offset:
        num_timesteps = steps + 1 if inner else steps
        first = float(spaced(timesteps, num_timesteps, spacing)[0]) + offset
        check(
            first < timesteps,
            f"Offset {offset} leads beyond the last timestep, {timesteps - 1}: lower it.",
        )


def _timesteps(kind: GridKind, schedule: NoiseSchedule, steps: int, spacing: Spacing) -> np.ndarray:
    if kind == "float" and spacing == "linspace":
        return np.linspace(0, schedule.timesteps - 1, max(steps, 2))[::-1][:steps]
    if kind.startswith("inner") and spacing in ("linspace", "leading"):
        return spaced(schedule.timesteps, steps + 1, spacing)[:-1]
    return timesteps_for(schedule, steps, spacing)


def _replace_pure_noise(schedule: NoiseSchedule) -> NoiseSchedule:
    """Give the last timestep alpha_bar = MIN_ALPHA_BAR if it is pure noise."""
    log_alpha = np.asarray(schedule.log_alpha, np.float64)
    if np.isfinite(log_alpha[-1]):
        return schedule
    log_alpha = np.append(log_alpha[:-1], np.log(MIN_ALPHA_BAR) - np.sum(log_alpha[:-1]))
    return dataclasses.replace(schedule, log_alpha=jnp.asarray(log_alpha, jnp.float32))


def noise_scale(kind: GridKind, spacing: Spacing, grid: GridRow):
    """The standard deviation of the initial noise.

    On the grid float, with any spacing but leading, diffusers' Euler, Heun and LMS start from
    sqrt(1 - alpha_bar) eps instead of eps.
    """
    if kind == "float" and spacing != "leading":
        return grid.sqrt_one_minus_alpha_bar[0]
    return 1.0


def needs_whole_timesteps(kind: GridKind) -> bool:
    """Whether diffusers rounds the timesteps of this grid before it calls the network."""
    return kind.startswith("inner")


def at_whole_timesteps(network: Network) -> Network:
    """Wrap the network so that it gets timesteps rounded to whole ones."""
    return Partial(_at_whole, network if isinstance(network, Partial) else Partial(network))


def _at_whole(network, xt, t):
    return network(xt, jnp.round(t).astype(jnp.int32))
