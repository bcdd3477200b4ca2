"""Grids of diffusers' schedulers, compared with their `set_timesteps` and `step`."""

from typing import get_args

import jax.numpy as jnp
import numpy as np
from helpers.refusals import assert_refused

from ddpm_jax import samplers
from ddpm_jax.diffusion.analytic import mixture_x0
from ddpm_jax.diffusion.grid import CLEAN_DATA
from ddpm_jax.diffusion.prediction import make_denoiser
from ddpm_jax.diffusion.schedule import from_betas, linear_betas, zero_terminal_snr
from ddpm_jax.generation.scheduler_grids import GridKind, needs_whole_timesteps, scheduler_grid
from ddpm_jax.samplers import initial_noise, sample, sample_keys

SCHEDULE = from_betas(linear_betas())
LEADING = [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]
LINSPACE = [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]
TRAILING = [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
LINSPACE_11 = [999, 899, 799, 699, 599, 500, 400, 300, 200, 100]
LEADING_11 = [900, 810, 720, 630, 540, 450, 360, 270, 180, 90]
TEN_STEPS = [
    ("strides", "leading", LEADING),
    ("strides", "linspace", LINSPACE),
    ("strides_to_0", "trailing", TRAILING),
    ("inner", "linspace", LINSPACE_11),
    ("inner", "leading", LEADING_11),
    ("inner", "trailing", TRAILING),
    ("inner_to_0", "linspace", LINSPACE_11),
    ("float", "leading", LEADING),
    ("float", "linspace", np.linspace(999, 0, 10).tolist()),
]


def test_ten_timesteps_are_those_of_diffusers():
    for kind, spacing, t in TEN_STEPS:
        grid = scheduler_grid(kind, SCHEDULE, 10, spacing)
        end = 0 if kind.endswith("to_0") else CLEAN_DATA
        strides = np.maximum(np.array(t) - 100, end)
        t_next = strides if kind.startswith("strides") else [*t[1:], end]
        case = f"{kind}, {spacing}"
        np.testing.assert_allclose(grid.t, t, rtol=1e-6, err_msg=case)
        np.testing.assert_allclose(grid.t_next, t_next, rtol=1e-6, err_msg=case)


def test_noise_levels_are_those_of_the_timesteps():
    grid = scheduler_grid("inner_to_0", SCHEDULE, 10, "linspace")
    levels = np.sqrt(np.cumprod(1 - linear_betas()))
    np.testing.assert_allclose(grid.sqrt_alpha_bar, levels[LINSPACE_11], rtol=1e-6)
    np.testing.assert_allclose(grid.sqrt_alpha_bar_next[-1], levels[0], rtol=1e-6)


def test_grids_in_log_snr_replace_pure_noise():
    schedule = from_betas(zero_terminal_snr(linear_betas()))
    plain = scheduler_grid("strides", schedule, 10, "trailing")
    assert plain.sqrt_alpha_bar[0] == 0
    for kind in ("inner", "float"):
        grid = scheduler_grid(kind, schedule, 10, "trailing")
        np.testing.assert_allclose(grid.sqrt_alpha_bar[0], 2.0**-12, rtol=1e-3)
        np.testing.assert_array_equal(grid.sqrt_alpha_bar[1:], plain.sqrt_alpha_bar[1:])


def test_a_grid_that_the_scheduler_does_not_have_is_refused():
    assert len(scheduler_grid("inner", SCHEDULE, 999, "linspace").i) == 999
    assert len(scheduler_grid("inner", SCHEDULE, 7, "karras").i) == 7
    cases = [
        (("inner", 1000, "linspace"), "Grid inner takes fewer than T = 1000 steps, not 1000"),
        (
            ("strides", 7, "karras"),
            "Grid strides takes equal strides of t, and spacing karras has none: set grid plain",
        ),
    ]
    assert_refused(lambda case: scheduler_grid(case[0], SCHEDULE, *case[1:]), cases)


def test_only_the_inner_grids_need_whole_timesteps():
    assert [kind for kind in get_args(GridKind) if needs_whole_timesteps(kind)] == [
        "inner",
        "inner_to_0",
    ]


def test_a_last_step_of_length_zero_changes_nothing():
    """16 steps, because the order of the last step falls to 1 in shorter walks."""
    grid = scheduler_grid("inner_to_0", SCHEDULE, 16, "karras")
    assert float(grid.h[-1]) == 0
    keys = sample_keys(0, jnp.arange(4))
    xT = initial_noise(keys, (2, 2, 1))
    x0 = mixture_x0(SCHEDULE, jnp.full((1, 2, 2, 1), 0.5), 0.1)
    sampler = samplers.make("deis", compat=True)
    denoise = make_denoiser(SCHEDULE, x0, "x0", None)
    *_, before, after = np.asarray(sample(keys, denoise, sampler, grid, xT, trajectory=True))
    np.testing.assert_allclose(before, after, rtol=1e-6)
