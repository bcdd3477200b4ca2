"""The grids of diffusers' schedulers, written as its `set_timesteps` and `step` have them."""

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import samplers
from ddpm_jax.diffusion.analytic import mixture_x0
from ddpm_jax.diffusion.grid import CLEAN
from ddpm_jax.diffusion.prediction import make_denoiser
from ddpm_jax.diffusion.schedule import from_betas, linear, zero_terminal_snr
from ddpm_jax.generation.scheduler_grids import compat_grid
from ddpm_jax.samplers import initial_noise, sample, sample_keys

SCHEDULE = from_betas(linear())
LEADING = [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]
LINSPACE = [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]
TRAILING = [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
LINSPACE_11 = [999, 899, 799, 699, 599, 500, 400, 300, 200, 100]
LEADING_11 = [900, 810, 720, 630, 540, 450, 360, 270, 180, 90]


@pytest.mark.parametrize(
    ("walk", "spacing", "t"),
    [
        ("strides", "leading", LEADING),
        ("strides", "linspace", LINSPACE),
        ("strides_to_0", "trailing", TRAILING),
        ("inner", "linspace", LINSPACE_11),
        ("inner", "leading", LEADING_11),
        ("inner", "trailing", TRAILING),
        ("inner_to_0", "linspace", LINSPACE_11),
        ("float", "leading", LEADING),
        ("float", "linspace", np.linspace(999, 0, 10).tolist()),
    ],
)
def test_ten_steps(walk, spacing, t):
    grid = compat_grid(walk, SCHEDULE, 10, spacing)
    np.testing.assert_allclose(grid.t, t, rtol=1e-6)
    end = 0 if walk.endswith("to_0") else CLEAN
    if walk.startswith("strides"):
        np.testing.assert_array_equal(grid.t_next, np.maximum(np.array(t) - 100, end))
    else:
        np.testing.assert_allclose(grid.t_next, [*t[1:], end], rtol=1e-6)


def test_levels_are_those_of_the_timesteps():
    grid = compat_grid("inner_to_0", SCHEDULE, 10, "linspace")
    np.testing.assert_allclose(grid.sqrt_alpha_bar, np.sqrt(np.cumprod(1 - linear()))[LINSPACE_11], rtol=1e-6)
    np.testing.assert_allclose(grid.sqrt_alpha_bar_next[-1], np.sqrt(1 - linear()[0]), rtol=1e-6)


def test_a_spacing_by_noise_is_ours_where_there_are_no_strides():
    assert len(compat_grid("inner", SCHEDULE, 7, "karras").i) == 7
    with pytest.raises(ValueError, match="compat walks equal strides of t here: spacing karras has none"):
        compat_grid("strides", SCHEDULE, 7, "karras")


def test_pure_noise_keeps_a_little_signal_where_walks_are_in_log_snr():
    schedule = from_betas(zero_terminal_snr(linear()))
    assert compat_grid("strides", schedule, 10, "trailing").sqrt_alpha_bar[0] == 0
    for walk in ("inner", "float"):
        grid = compat_grid(walk, schedule, 10, "trailing")
        np.testing.assert_allclose(grid.sqrt_alpha_bar[0], 2.0**-12, rtol=1e-3)
        plain = compat_grid("strides", schedule, 10, "trailing")
        np.testing.assert_array_equal(grid.sqrt_alpha_bar[1:], plain.sqrt_alpha_bar[1:])


def test_too_many_steps_are_refused():
    assert len(compat_grid("inner", SCHEDULE, 999, "linspace").i) == 999
    with pytest.raises(ValueError, match="compat takes less than T = 1000 steps here, not 1000"):
        compat_grid("inner", SCHEDULE, 1000, "linspace")


@pytest.mark.parametrize("name", samplers.names())
def test_every_sampler_with_a_compat_has_its_walk(name):
    if "compat" not in samplers.options_of(name):
        assert name in ("ddpm", "edm", "dpm_solver_v3")
        return
    walks = [samplers.make(name, compat=compat).compat_walk for compat in (False, True)]
    assert walks[0] is None
    assert walks[1] is not None


@pytest.mark.parametrize("steps", [10, 50])
def test_a_last_step_of_no_length_changes_nothing(steps):
    grid = compat_grid("inner_to_0", SCHEDULE, steps, "karras")
    assert float(grid.h[-1]) == 0
    keys = sample_keys(0, jnp.arange(4))
    xT = initial_noise(keys, (2, 2, 1))
    denoise = make_denoiser(SCHEDULE, mixture_x0(SCHEDULE, jnp.full((1, 2, 2, 1), 0.5), 0.1), "x0", None)
    *_, before, after = sample(keys, denoise, samplers.make("deis", compat=True), grid, xT, trajectory=True)
    np.testing.assert_allclose(before, after, rtol=1e-6)
