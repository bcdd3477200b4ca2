"""Inversion against exact solutions: one point, a Gaussian's flow, the order of the round trip."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.editing import ALPHA_BAR, CURVED, GAUSSIAN, IMAGES, KEYS, MU, NOISE, SCHEDULE, STD, grid_of
from jax.tree_util import Partial

from ddpm_jax import samplers
from ddpm_jax.diffusion.grid import make_grid, spaced
from ddpm_jax.diffusion.prediction import make_denoiser
from ddpm_jax.diffusion.schedule import from_betas, linear, zero_terminal_snr
from ddpm_jax.generation.editing import Edit, check_inverts, invert, slerp, upwards
from ddpm_jax.samplers import sample
from ddpm_jax.samplers.dpm_solver_v3 import X0, with_statistics


def test_inversion_of_one_point_is_exact_in_any_number_of_steps():
    """The denoiser knows x0 = p: xT = signal_T p + noise_T eps, with the eps that the picture has at the last level."""
    p = IMAGES[:1]
    denoise = make_denoiser(SCHEDULE, lambda xt, t: jnp.broadcast_to(p, xt.shape), "x0", None)
    for steps in (2, 10):
        grid, ddim = grid_of(steps), samplers.make("ddim")
        first, last = ALPHA_BAR[int(grid.t[0])], ALPHA_BAR[int(grid.t[-1])]
        eps = (np.asarray(IMAGES, float) - np.sqrt(last) * np.asarray(p)) / np.sqrt(1 - last)
        xT = invert(KEYS, denoise, ddim, grid, IMAGES)
        np.testing.assert_allclose(xT, np.sqrt(first) * np.asarray(p) + np.sqrt(1 - first) * eps, atol=1e-4)
        states = sample(KEYS, denoise, ddim, grid, xT, trajectory=True)
        np.testing.assert_allclose(states[-2], IMAGES, atol=1e-4)
        np.testing.assert_allclose(states[-1], jnp.broadcast_to(p, IMAGES.shape), atol=1e-4)


def test_the_round_trip_of_inversion_is_of_first_order():
    off = []
    for steps in (25, 50, 100):
        grid, ddim = grid_of(steps), samplers.make("ddim")
        back = sample(KEYS, GAUSSIAN, ddim, grid, invert(KEYS, GAUSSIAN, ddim, grid, IMAGES))
        off.append(float(jnp.sqrt(jnp.mean((back - IMAGES) ** 2))))
    orders = -np.diff(np.log2(off))
    assert np.all((orders > 0.8) & (orders < 1.3)), (off, orders)
    assert off[-1] < 0.04


def test_inversion_reaches_the_state_of_the_exact_flow():
    """Of a Gaussian the probability flow keeps (x - signal MU) / deviation, deviation^2 = STD^2 signal^2 + noise^2."""
    grid = grid_of(500)
    xT = invert(KEYS, GAUSSIAN, samplers.make("ddim"), grid, IMAGES)
    (first, last), deviation = (ALPHA_BAR[int(grid.t[i])] for i in (0, -1)), lambda a: np.sqrt(STD**2 * a + 1 - a)
    z = (np.asarray(IMAGES, float) - np.sqrt(last) * MU) / deviation(last)
    np.testing.assert_allclose(xT, np.sqrt(first) * MU + deviation(first) * z, atol=0.02)


def test_the_way_up_passes_the_levels_of_the_way_down():
    grid = grid_of(5)
    up = upwards(grid)
    assert up.t.tolist() == grid.t[:0:-1].tolist()
    assert up.t_next.tolist() == grid.t[-2::-1].tolist()


@pytest.mark.parametrize(
    ("name", "options", "noisy"),
    [
        ("ddpm", {}, True),
        ("ddim", {}, False),
        ("ddim", {"eta": 0.01}, True),
        ("edm", {"S_churn": 10.0}, True),
        ("edm", {}, False),
        ("heun", {}, False),
        ("euler_ancestral", {"eta": 0.0}, False),
    ],
)
def test_inversion_refuses_a_sampler_that_draws_noise(name, options, noisy):
    sampler, grid = samplers.make(name, **options), grid_of(6)
    if not noisy:
        check_inverts(sampler, grid, IMAGES.shape[1:])
        return
    asks = (
        lambda: invert(KEYS, CURVED, sampler, grid, IMAGES),
        lambda: Edit(images=IMAGES, inverted=True).grid(grid, sampler),
    )
    for ask in asks:
        with pytest.raises(ValueError, match="needs a sampler that draws no noise, such as ddim"):
            ask()


@pytest.mark.parametrize("name", [name for name in samplers.names() if samplers.make(name).order])
def test_pure_noise_is_not_walked_up_to(name):
    schedule, sampler = from_betas(zero_terminal_snr(linear())), samplers.make(name)
    grid = make_grid(schedule, spaced(1000, 10))
    denoise = make_denoiser(schedule, Partial(lambda xt, t: 0.9 * xt), "v", None)
    edit = Edit(images=IMAGES, inverted=True).of(jnp.arange(6))
    walked = edit.grid(grid, sampler)
    assert walked.t.tolist() == grid.t.tolist()[1:]
    start = edit.start(KEYS, denoise, sampler, walked, NOISE)
    assert jnp.all(jnp.isfinite(sample(KEYS, denoise, sampler, walked, start)))
    with pytest.raises(ValueError, match="no picture leads to pure noise"):
        invert(KEYS, denoise, sampler, grid, IMAGES)


def test_a_walk_of_one_level_cannot_be_inverted():
    with pytest.raises(ValueError, match="inversion walks up from one noise level to another: take more steps"):
        Edit(images=IMAGES, inverted=True, strength=0.1).grid(grid_of(10), samplers.make("ddim"))


def test_statistics_of_the_pictures_can_be_inverted_with():
    tables = jax.tree.map(lambda x: np.broadcast_to(x, (2, 4, 4, 1)) if x.ndim == 4 else x, X0)
    sampler = with_statistics(tables, 2, False)
    grid = Edit(images=IMAGES, inverted=True).grid(grid_of(20), sampler)
    assert jnp.all(jnp.isfinite(invert(KEYS, GAUSSIAN, sampler, grid, IMAGES)))


def test_an_inverted_picture_is_where_its_edit_starts():
    ddim = samplers.make("ddim")
    edit = Edit(images=IMAGES, strength=0.5, inverted=True).of(jnp.arange(6))
    grid = edit.grid(grid_of(8), samplers.make("ddim"))
    np.testing.assert_array_equal(edit.start(KEYS, CURVED, ddim, grid, NOISE), invert(KEYS, CURVED, ddim, grid, IMAGES))
    between = Edit(images=IMAGES, others=IMAGES[::-1], shares=jnp.full(6, 0.5), strength=0.5, inverted=True)
    start = between.of(jnp.arange(6)).start(KEYS, CURVED, ddim, grid, NOISE)
    ends = [invert(KEYS, CURVED, ddim, grid, images) for images in (IMAGES, IMAGES[::-1])]
    np.testing.assert_allclose(start, slerp(*ends, jnp.full(6, 0.5)), atol=1e-5)
