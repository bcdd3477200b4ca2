"""Inversion against exact solutions: one point, a Gaussian's flow, the order of the round trip."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.editing import (
    ALPHA_BAR,
    CURVED,
    GAUSSIAN,
    IMAGES,
    KEYS,
    MU,
    NOISE,
    SCHEDULE,
    SHAPE,
    STD,
    grid_of,
    signal_and_noise,
)
from helpers.refusals import assert_refused
from jax.tree_util import Partial

from ddpm_jax import samplers
from ddpm_jax.diffusion.grid import make_grid, spaced
from ddpm_jax.diffusion.prediction import make_denoiser
from ddpm_jax.diffusion.schedule import from_betas, linear_betas, zero_terminal_snr
from ddpm_jax.generation.editing import Edit, check_inverts, invert, reversed_grid, slerp
from ddpm_jax.samplers import sample

DDIM = samplers.make("ddim")


def first_image(image, xt, t):
    """E[x0 | xt] where every image of the data is the same."""
    return jnp.broadcast_to(image, xt.shape)


def test_inversion_of_one_point_is_exact_in_few_steps():
    """The denoiser knows x0 = p, so xT = signal_T p + noise_T eps.

    eps is the one that the image has at the last noisy level.
    """
    p = np.asarray(IMAGES[:1])
    denoise = make_denoiser(SCHEDULE, Partial(first_image, IMAGES[:1]), "x0", None)
    grid = grid_of(4)
    signal, noise = signal_and_noise(grid.t[-1])
    eps = (np.asarray(IMAGES, float) - signal * p) / noise
    xT = invert(KEYS, denoise, DDIM, grid, IMAGES)
    signal, noise = signal_and_noise(grid.t[0])
    np.testing.assert_allclose(xT, signal * p + noise * eps, atol=1e-4)


@pytest.fixture(scope="module")
def gaussian_round_trips():
    """{steps: (xT, images)}: the encoding of a Gaussian's images, and its decoding."""
    found = {}
    for steps in (250, 500):
        grid = grid_of(steps)
        xT = invert(KEYS, GAUSSIAN, DDIM, grid, IMAGES)
        found[steps] = xT, sample(KEYS, GAUSSIAN, DDIM, grid, xT)
    return found


def test_the_round_trip_of_inversion_is_of_first_order(gaussian_round_trips):
    images = np.asarray(IMAGES, float)
    off = [np.sqrt(np.mean((back - images) ** 2)) for _, back in gaussian_round_trips.values()]
    assert 0.8 < np.log2(off[0] / off[1]) < 1.3, off
    assert off[1] < 0.01


def test_inversion_reaches_the_state_of_the_exact_flow(gaussian_round_trips):
    """The probability flow of a Gaussian keeps (x - signal MU) / deviation.

    deviation^2 = STD^2 signal^2 + noise^2.
    """
    grid = grid_of(500)
    xT, _ = gaussian_round_trips[500]
    first, last = (ALPHA_BAR[int(grid.t[i])] for i in (0, -1))

    def deviation(alpha_bar):
        return np.sqrt(STD**2 * alpha_bar + 1 - alpha_bar)

    z = (np.asarray(IMAGES, float) - np.sqrt(last) * MU) / deviation(last)
    np.testing.assert_allclose(xT, np.sqrt(first) * MU + deviation(first) * z, atol=0.02)


def test_the_way_up_passes_the_levels_of_the_way_down():
    grid = grid_of(5)
    up = reversed_grid(grid)
    assert up.t.tolist() == grid.t.tolist()[:0:-1]
    assert up.t_next.tolist() == grid.t.tolist()[-2::-1]


def test_inversion_refuses_a_sampler_that_draws_noise():
    grid = grid_of(4)
    for sampler in (DDIM, samplers.make("edm")):
        check_inverts(sampler, grid, SHAPE)
    message = "needs a sampler that draws no noise, such as ddim"
    noisy = [("ddpm", {}), ("ddim", {"eta": 0.01}), ("edm", {"S_churn": 10.0})]
    cases = [(case, message) for case in noisy]
    edit = Edit(images=IMAGES, invert=True)
    assert_refused(lambda case: edit.grid(grid, samplers.make(case[0], **case[1])), cases)
    with pytest.raises(ValueError, match=message):
        invert(KEYS, CURVED, samplers.make("ddpm"), grid, IMAGES)


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m"])
def test_an_inverted_walk_leaves_out_pure_noise(name):
    schedule = from_betas(zero_terminal_snr(linear_betas()))
    sampler = samplers.make(name)
    grid = make_grid(schedule, spaced(1000, 5))
    denoise = make_denoiser(schedule, Partial(_shrunk), "v", None)
    edit = Edit(images=IMAGES, invert=True)
    walked = edit.grid(grid, sampler)
    assert walked.t.tolist() == grid.t.tolist()[1:]
    start = edit.start(KEYS, denoise, sampler, walked, NOISE)
    assert np.all(np.isfinite(start))
    with pytest.raises(ValueError, match="no picture leads to pure noise"):
        invert(KEYS, denoise, sampler, grid, IMAGES)


def _shrunk(xt, t):
    return 0.9 * xt


def test_a_walk_of_one_level_cannot_be_inverted():
    edit = Edit(images=IMAGES, invert=True, strength=0.1)
    message = "inversion walks up from one noise level to another: take more steps"
    with pytest.raises(ValueError, match=message):
        edit.grid(grid_of(10), DDIM)


def test_a_sampler_made_for_images_of_one_shape_can_invert():
    """Such as dpm_solver_v3 with statistics of each pixel, which refuses other shapes."""

    def init(xT):
        assert xT.shape[1:] == SHAPE
        return ()

    sampler = dataclasses.replace(DDIM, init=Partial(init))
    grid = grid_of(4)
    walked = Edit(images=IMAGES, invert=True).grid(grid, sampler)
    assert walked.t.tolist() == grid.t.tolist()


def test_an_inverted_image_is_where_its_edit_starts():
    edit = Edit(images=IMAGES, strength=0.5, invert=True)
    grid = edit.grid(grid_of(8), DDIM)
    first, other = (invert(KEYS, CURVED, DDIM, grid, images) for images in (IMAGES, IMAGES[::-1]))
    np.testing.assert_array_equal(edit.start(KEYS, CURVED, DDIM, grid, NOISE), first)
    shares = jnp.full(6, 0.5)
    ends = {"images": IMAGES, "others": IMAGES[::-1], "shares": shares}
    between = Edit(**ends, strength=0.5, invert=True)
    start = between.start(KEYS, CURVED, DDIM, grid, NOISE)
    np.testing.assert_allclose(start, slerp(first, other, shares), atol=1e-5)
