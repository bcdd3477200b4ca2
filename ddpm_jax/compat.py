"""The grids of diffusers' schedulers where they are not ours: what the `compat` of a sampler asks for."""

from typing import Literal

import numpy as np

from ddpm_jax.errors import check
from ddpm_jax.grids import CLEAN, Row, Spacing, by_noise, rows, spaced, times_of
from ddpm_jax.schedule import NoiseSchedule

Walk = Literal["strides", "strides_to_0", "inner", "inner_to_0", "float"]


def compat_grid(walk: Walk, schedule: NoiseSchedule, steps: int, spacing: Spacing) -> Row:
    """The grid of `steps` rows that diffusers walks with a sampler.

    strides       from each t to t - T // steps, whatever the spacing             DDIM
    inner         linspace and leading are of steps + 1 timesteps, less the last  DPM-Solver++, UniPC
    strides_to_0  as strides, and the last row leads to the level of t = 0        PNDM
    inner_to_0    as inner, and the last row leads to the level of t = 0          DEIS
    float         linspace is not rounded to whole timesteps                      Euler, Heun, LMS

    Raises ValueError for steps out of range, and for strides where the spacing is by noise level.
    """
    end = 0 if walk.endswith("to_0") else CLEAN
    if walk.startswith("strides"):
        check(not by_noise(spacing), f"compat walks equal strides of t here: spacing {spacing} has none")
        t = spaced(schedule.timesteps, steps, spacing)
        return rows(schedule, t, np.maximum(t - schedule.timesteps // steps, end))
    t = _times(walk, schedule, steps, spacing)
    return rows(schedule, t, np.append(t[1:], end))


def _times(walk: Walk, schedule: NoiseSchedule, steps: int, spacing: Spacing) -> np.ndarray:
    if walk == "float" and spacing == "linspace":
        return np.linspace(0, schedule.timesteps - 1, max(steps, 2))[::-1][:steps]
    if walk.startswith("inner") and spacing in ("linspace", "leading"):
        check(steps < schedule.timesteps, f"compat takes less than T = {schedule.timesteps} steps here, not {steps}")
        return spaced(schedule.timesteps, steps + 1, spacing)[:-1]
    return times_of(schedule, steps, spacing)
