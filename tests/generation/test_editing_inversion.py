"""Inversion against exact solutions: one point, the flow of a Gaussian, the round trip's order."""

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
    SHAPE,
    STD,
    signal_and_noise,
)
from helpers.refusals import assert_refused
from helpers.samplers import SCHEDULE, grid_of, naive_walk
from jax.tree_util import Partial

from ddpm_jax import samplers
from ddpm_jax.diffusion.grid import make_grid, spaced
from ddpm_jax.diffusion.prediction import make_denoiser
from ddpm_jax.diffusion.schedule import from_betas, linear_betas, zero_terminal_snr
from ddpm_jax.generation.editing import Edit, check_inverts, invert, reversed_grid, slerp

DDIM = samplers.make("ddim")


def first_image(image, xt, t):
    """E[x0 | xt] if all images of the data are equal."""
    return jnp.broadcast_to(image, xt.shape)


def test_inversion_of_one_point_is_exact_in_few_steps():
    """The denoiser knows x0 = p, so xT = signal_T p + noise_T eps.

    eps is the noise of the image, seen as the state at the last noisy level.
    """
    p = np.asarray(IMAGES[:1])
    denoise = make_denoiser(SCHEDULE, Partial(first_image, IMAGES[:1]), "x0", None)
    grid = grid_of(4)
    signal, noise = signal_and_noise(grid.t[-1])
    eps = (np.asarray(IMAGES, float) - signal * p) / noise
    xT = invert(KEYS, denoise, DDIM, grid, IMAGES)
    signal, noise = signal_and_noise(grid.t[0])
    np.testing.assert_allclose(xT, signal * p + noise * eps, atol=1e-4)


def test_a_grid_of_one_level_is_refused():
    """It has no step in reverse, so the images themselves would be the noise."""
    with pytest.raises(ValueError, match="Inversion needs at least two noise levels: give a grid"):
        invert(KEYS, GAUSSIAN, DDIM, grid_of(1), IMAGES)


@pytest.fixture(scope="module")
def gaussian_round_trips():
    """{steps: (xT, x0)}: the images inverted with the denoiser of a Gaussian, and decoded."""
    round_trips = {}
    for steps in (250, 500):
        grid = grid_of(steps)
        xT = invert(KEYS, GAUSSIAN, DDIM, grid, IMAGES)
        *_, x0 = naive_walk(DDIM, KEYS, GAUSSIAN, grid, xT)
        round_trips[steps] = xT, x0
    return round_trips


def test_the_error_of_the_round_trip_is_of_first_order(gaussian_round_trips):
    images = np.asarray(IMAGES, float)
    errors = [np.sqrt(np.mean((x0 - images) ** 2)) for _, x0 in gaussian_round_trips.values()]
    assert 0.8 < np.log2(errors[0] / errors[1]) < 1.3, errors
    assert errors[1] < 0.01


def test_inversion_follows_the_exact_flow_of_a_gaussian(gaussian_round_trips):
    """The probability flow preserves (x - signal MU) / std, std^2 = STD^2 signal^2 + noise^2."""
    grid = grid_of(500)
    xT, _ = gaussian_round_trips[500]
    first, last = (ALPHA_BAR[int(grid.t[i])] for i in (0, -1))

    def std(alpha_bar):
        return np.sqrt(STD**2 * alpha_bar + 1 - alpha_bar)

    z = (np.asarray(IMAGES, float) - np.sqrt(last) * MU) / std(last)
    np.testing.assert_allclose(xT, np.sqrt(first) * MU + std(first) * z, atol=0.02)


def test_the_reversed_grid_has_the_noise_levels_of_the_grid():
    grid = grid_of(5)
    up = reversed_grid(grid)
    assert up.t.tolist() == grid.t.tolist()[:0:-1]
    assert up.t_next.tolist() == grid.t.tolist()[-2::-1]


def test_inversion_refuses_a_sampler_that_draws_noise():
    grid = grid_of(4)
    for sampler in (DDIM, samplers.make("edm")):
        check_inverts(sampler, grid, SHAPE)
    message = "use one that draws no noise, such as ddim"
    stochastic = [("ddpm", {}), ("ddim", {"eta": 0.01}), ("edm", {"S_churn": 10.0})]
    cases = [(case, message) for case in stochastic]
    edit = Edit(images=IMAGES, invert=True)
    assert_refused(lambda case: edit.grid(grid, samplers.make(case[0], **case[1])), cases)
    with pytest.raises(ValueError, match=message):
        invert(KEYS, CURVED, samplers.make("ddpm"), grid, IMAGES)


@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_inversion_refuses_a_sampler_with_a_learned_variance_for_its_noise(variance):
    with pytest.raises(ValueError, match="Inversion needs a deterministic sampler"):
        check_inverts(samplers.make("ddpm", variance=variance), grid_of(4), SHAPE)


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m"])
def test_an_inversion_skips_pure_noise(name):
    schedule = from_betas(zero_terminal_snr(linear_betas()))
    sampler = samplers.make(name)
    grid = make_grid(schedule, spaced(1000, 5))
    denoise = make_denoiser(schedule, Partial(_scaled), "v", None)
    edit = Edit(images=IMAGES, invert=True)
    walked = edit.grid(grid, sampler)
    assert walked.t.tolist() == grid.t.tolist()[1:]
    start = edit.start(KEYS, denoise, sampler, walked, NOISE)
    assert np.all(np.isfinite(start))
    with pytest.raises(ValueError, match="No image can be inverted to pure noise"):
        invert(KEYS, denoise, sampler, grid, IMAGES)


def _scaled(xt, t):
    return 0.9 * xt


def test_a_grid_of_one_noise_level_cannot_be_inverted():
    edit = Edit(images=IMAGES, invert=True, strength=0.1)
    message = "Inversion needs at least two noise levels: take more steps"
    with pytest.raises(ValueError, match=message):
        edit.grid(grid_of(10), DDIM)


def test_a_sampler_for_images_of_one_shape_can_invert():
    """For example dpm_solver_v3 with statistics of each pixel, which refuses other shapes."""

    def init(xT):
        assert xT.shape[1:] == SHAPE
        return ()

    sampler = dataclasses.replace(DDIM, init=Partial(init))
    grid = grid_of(4)
    walked = Edit(images=IMAGES, invert=True).grid(grid, sampler)
    assert walked.t.tolist() == grid.t.tolist()


def test_an_edit_with_inversion_starts_at_the_inverted_image():
    edit = Edit(images=IMAGES, strength=0.5, invert=True)
    grid = edit.grid(grid_of(8), DDIM)
    first = invert(KEYS, CURVED, DDIM, grid, IMAGES)
    other = invert(KEYS, CURVED, DDIM, grid, IMAGES[::-1])
    np.testing.assert_array_equal(edit.start(KEYS, CURVED, DDIM, grid, NOISE), first)
    fractions = jnp.full(6, 0.5)
    ends = {"images": IMAGES, "end_images": IMAGES[::-1], "fractions": fractions}
    interpolation = Edit(**ends, strength=0.5, invert=True)
    start = interpolation.start(KEYS, CURVED, DDIM, grid, NOISE)
    np.testing.assert_allclose(start, slerp(first, other, fractions), atol=1e-5)
