"""Walks of an objective and a sampling: that they are those of the parts that both name."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from helpers.refusals import assert_refused
from jax.tree_util import Partial

from ddpm_jax import samplers
from ddpm_jax.diffusion.grid import CLEAN_DATA, make_grid, spaced
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.generation.editing import Edit, add_noise, truncate
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.generation.walk import (
    edited_grid,
    noise_ladder,
    predict_x0,
    sampling_denoiser,
    sampling_grid,
    walk,
    walk_length,
)
from ddpm_jax.samplers import initial_noise

SHAPE = (4, 4, 1)
SMALL = Objective(timesteps=20, beta_start=0.01, beta_end=0.6)
X0 = Objective(target="x0")
KEYS = samplers.sample_keys(0, jnp.arange(3))
IMAGES = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (3, *SHAPE)), jnp.float32)
denoise = jax.jit(lambda denoiser, xt, t: denoiser(xt, t))
ladder = jax.jit(lambda keys, images: (*noise_ladder(keys, X0, images), initial_noise(keys, SHAPE)))


def network(xt, t):
    return 0.5 * jnp.tanh(xt)


def identity(xt, t):
    return xt


def times(settings):
    """The timesteps of a sampling's grid."""
    return sampling_grid(SMALL, Sampling(**settings)).t.tolist()


def test_a_walk_is_that_of_its_sampler_and_grid():
    sampler = samplers.make("ddpm", variance="fixed_large")
    options = {"variance": "fixed_large"}
    for spacing in ("trailing", "leading", "linspace"):
        sampling = Sampling(steps=4, spacing=spacing, options=options)
        states = list(walk(KEYS, SMALL, network, SHAPE, sampling, 2))
        assert len(states) == 3
        np.testing.assert_array_equal(states[0], initial_noise(KEYS, SHAPE))
        grid = make_grid(SMALL.noise_schedule, spaced(20, 4, spacing))
        denoiser = sampling_denoiser(SMALL, Partial(network), sampling)
        expected = samplers.sample(KEYS, denoiser, sampler, grid, states[0], trajectory=True)
        for i in (1, 2):
            np.testing.assert_allclose(
                states[i], expected[2 * i], atol=1e-5, err_msg=f"{spacing}, state {i}"
            )


def test_the_denoiser_clips_and_thresholds_as_the_sampling_says():
    ramp = np.linspace(0, 4, 16, dtype=np.float32).reshape(SHAPE)
    xt = jnp.asarray(np.stack([ramp] * 3))
    for settings, expected in (
        ({"clip_x0": False}, xt),
        ({"clip_x0": True}, np.minimum(xt, 1)),
        ({"dynamic_threshold": 1.0}, xt / 4),
        ({"dynamic_threshold": 1.0, "threshold_limit": 2.0}, np.minimum(xt, 2) / 2),
    ):
        denoiser = sampling_denoiser(X0, identity, Sampling(**settings))
        found = denoise(denoiser, xt, jnp.array(10)).x0
        np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=str(settings))


def test_keep_eps_keeps_what_the_network_says_where_x0_is_clipped():
    xt = 2 + IMAGES
    for keep_eps in (False, True):
        denoiser = sampling_denoiser(SMALL, network, Sampling(keep_eps=keep_eps))
        found = denoise(denoiser, xt, jnp.array(10))
        said = 0.5 * np.tanh(np.asarray(xt))
        assert np.max(np.abs(found.x0)) == 1
        assert np.allclose(found.eps, said, atol=1e-6) == keep_eps


def test_the_network_is_asked_at_whole_timesteps_where_the_grid_says_so():
    def asked(xt, t):
        return 0 * xt + t.astype(xt.dtype).reshape(-1, 1, 1, 1)

    for grid, seen in (("plain", 3.4), ("inner", 3.0)):
        sampling = Sampling(sampler="unipc", grid=grid, steps=4, clip_x0=False)
        denoiser = sampling_denoiser(SMALL, asked, sampling)
        found = denoise(denoiser, jnp.zeros((3, *SHAPE)), jnp.array(3.4)).eps
        np.testing.assert_allclose(found, seen, rtol=1e-5)


def test_a_noise_ladder_shows_every_level_and_predict_x0_undoes_it():
    images = jnp.asarray(np.resize(IMAGES, (5, *SHAPE)))
    keys = samplers.sample_keys(0, jnp.arange(5))
    xt, t, noise = ladder(keys, images)
    assert (t[0], t[-1]) == (0, 999)
    assert np.ptp(np.diff(np.asarray(t))) <= 1
    alpha_bar = np.cumprod(1 - X0.betas())[np.asarray(t), None, None, None]
    expected = np.sqrt(alpha_bar) * images + np.sqrt(1 - alpha_bar) * noise
    np.testing.assert_allclose(xt, expected, atol=1e-6)
    for objective, output in ((X0, images), (Objective(), noise)):
        said = Partial(_say, output)
        x0 = jax.jit(partial(predict_x0, objective))(said, xt, t)
        np.testing.assert_allclose(x0, images, atol=1e-3)


def _say(output, xt, t):
    return output


def test_a_grid_has_as_many_rows_as_the_walk_has_steps():
    for settings in (
        {},
        {"steps": 1},
        {"steps": 5, "spacing": "karras"},
        {"steps": 50, "spacing": "log_snr"},
        {"steps": 3, "grid": "inner", "spacing": "leading"},
        {"timesteps": (19.0, 10.0, 4.0)},
    ):
        assert len(times(settings)) == walk_length(SMALL, Sampling(**settings)), settings
    assert times({}) == list(range(20))[::-1]


def test_timesteps_win_over_steps_spacing_offset_and_grid():
    given = {"timesteps": (19.0, 10.0, 4.0)}
    grid = sampling_grid(SMALL, Sampling(**given))
    assert grid.t.tolist() == [19, 10, 4]
    assert jnp.issubdtype(grid.t.dtype, jnp.integer)
    np.testing.assert_allclose(times({"timesteps": (18.5, 10.0)}), [18.5, 10.0])
    for others in (
        {"steps": 7},
        {"spacing": "karras"},
        {"spacing": "leading", "offset": 2},
        {"grid": "inner", "steps": 7, "spacing": "leading"},
    ):
        assert times(given | others) == [19, 10, 4], others
        assert walk_length(SMALL, Sampling(**given, **others)) == 3, others


def test_the_offset_raises_leading_timesteps_and_no_others():
    leading = {"sampler": "ddim", "steps": 4, "spacing": "leading"}
    for grid in ("plain", "strides"):
        assert times(leading | {"grid": grid}) == [15, 10, 5, 0]
        raised = sampling_grid(SMALL, Sampling(**leading, grid=grid, offset=2))
        assert raised.t.tolist() == [17, 12, 7, 2]
        assert int(raised.t_next[-1]) == CLEAN_DATA
        trailing = {"steps": 4, "grid": grid}
        assert times(trailing | {"offset": 2}) == times(trailing)
    cases = [
        (leading | {"offset": 5}, "timesteps must fall strictly within 0..19"),
        (leading | {"offset": 5, "grid": "strides"}, "offset 5 leads beyond the last timestep, 19"),
    ]
    assert_refused(times, cases)


def test_a_grid_of_diffusers_replaces_the_plain_one():
    sampling = Sampling(sampler="unipc", steps=3, spacing="leading")
    assert sampling_grid(SMALL, sampling).t.tolist() == [12, 6, 0]
    inner = sampling_grid(SMALL, dataclasses.replace(sampling, grid="inner"))
    assert (inner.t.tolist(), inner.t_next.tolist()) == ([15, 10, 5], [10, 5, CLEAN_DATA])


def test_a_walk_ends_where_the_sampling_says():
    for settings, own in (
        ({}, CLEAN_DATA),
        ({"grid": "strides", "steps": 5}, CLEAN_DATA),
        ({"timesteps": (19.0, 9.0)}, CLEAN_DATA),
        ({"grid": "strides_to_0", "steps": 5}, 0),
    ):
        for end, expected in ((None, own), ("clean", CLEAN_DATA), ("sigma_min", 0)):
            grid = sampling_grid(SMALL, Sampling(**settings, end=end))
            assert int(grid.t_next[-1]) == expected, (settings, end)


def test_grids_in_sigma_start_from_the_noise_alone_as_diffusers_does():
    """They start at sigma eps, which is sqrt(1 - alpha_bar) eps in our scale."""
    noise = np.asarray(initial_noise(KEYS, SHAPE))
    for grid, spacing, scaled in (
        ("float", "leading", False),
        ("float", "trailing", True),
        ("float", "karras", True),
        ("inner", "trailing", False),
    ):
        sampling = Sampling(sampler="euler", grid=grid, steps=4, spacing=spacing)
        first = next(walk(KEYS, SMALL, network, SHAPE, sampling, 1))
        level = float(sampling_grid(SMALL, sampling).sqrt_one_minus_alpha_bar[0])
        assert level < 0.9999
        expected = (level if scaled else 1) * noise
        np.testing.assert_allclose(first, expected, rtol=1e-6, err_msg=f"{grid}, {spacing}")


def test_an_edited_walk_starts_and_ends_as_the_edit_says():
    edit = Edit(images=IMAGES, strength=0.5)
    sampling = Sampling(steps=8)
    grid = edited_grid(SMALL, sampling, samplers.make("ddpm"), edit)
    assert walk_length(SMALL, sampling, edit) == len(grid.i) == 4
    start, x0 = walk(KEYS, SMALL, network, SHAPE, sampling, 1, edit)
    whole = sampling_grid(SMALL, sampling)
    np.testing.assert_array_equal(start, add_noise(KEYS, truncate(whole, 0.5), IMAGES))
    denoiser = sampling_denoiser(SMALL, network, sampling)
    expected = samplers.sample(KEYS, denoiser, samplers.make("ddpm"), grid, start)
    np.testing.assert_allclose(x0, expected, atol=1e-5)
    positive = np.asarray(IMAGES) > 0
    masked = Edit(images=IMAGES, masks=jnp.asarray(positive), repeats=2, jump_length=3)
    *_, x0 = walk(KEYS, SMALL, network, SHAPE, sampling, 1, masked)
    np.testing.assert_array_equal(np.asarray(x0)[~positive], np.asarray(IMAGES)[~positive])
    assert np.any(np.asarray(x0)[positive] != np.asarray(IMAGES)[positive])
