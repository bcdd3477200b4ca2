"""Walks of an objective and a sampling, compared with the parts that they are made of."""

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


def timesteps(settings):
    """The timesteps of a sampling's grid."""
    return sampling_grid(SMALL, Sampling(**settings)).t.tolist()


def test_a_walk_runs_its_sampler_on_its_grid():
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
            case = f"{spacing}, state {i}"
            np.testing.assert_allclose(states[i], expected[2 * i], atol=1e-5, err_msg=case)


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
        x0 = denoise(denoiser, xt, jnp.array(10)).x0
        np.testing.assert_allclose(x0, expected, atol=1e-6, err_msg=str(settings))


def test_keep_eps_keeps_the_output_of_the_network_where_x0_is_clipped():
    xt = 2 + IMAGES
    for keep_eps in (False, True):
        denoiser = sampling_denoiser(SMALL, network, Sampling(keep_eps=keep_eps))
        prediction = denoise(denoiser, xt, jnp.array(10))
        output = 0.5 * np.tanh(np.asarray(xt))
        assert np.max(np.abs(prediction.x0)) == 1
        assert np.allclose(prediction.eps, output, atol=1e-6) == keep_eps


def test_the_network_is_called_at_whole_timesteps_if_the_grid_needs_them():
    def output_t(xt, t):
        return 0 * xt + t.astype(xt.dtype).reshape(-1, 1, 1, 1)

    for grid, t in (("plain", 3.4), ("inner", 3.0)):
        sampling = Sampling(sampler="unipc", grid=grid, steps=4, clip_x0=False)
        denoiser = sampling_denoiser(SMALL, output_t, sampling)
        eps = denoise(denoiser, jnp.zeros((3, *SHAPE)), jnp.array(3.4)).eps
        np.testing.assert_allclose(eps, t, rtol=1e-5)


def test_the_preconditioning_is_that_of_the_exact_timestep():
    """Only the network itself takes whole timesteps."""
    objective = Objective(schedule="edm", target="edm", timesteps=50)
    t = jnp.array(20.4)
    xt = 3 * IMAGES
    plain, inner = (
        denoise(
            sampling_denoiser(objective, network, Sampling(grid=grid, steps=4, clip_x0=False)),
            xt,
            t,
        )
        for grid in ("plain", "inner")
    )
    # This network ignores t, so nothing but the preconditioning could differ.
    np.testing.assert_allclose(inner.x0, plain.x0, atol=1e-6)


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
        network = Partial(_constant, output)
        x0 = jax.jit(partial(predict_x0, objective))(network, xt, t)
        np.testing.assert_allclose(x0, images, atol=1e-3)


def _constant(output, xt, t):
    return output


def test_a_grid_has_one_row_per_step_of_the_walk():
    for settings in (
        {},
        {"steps": 1},
        {"steps": 5, "spacing": "karras"},
        {"steps": 50, "spacing": "log_snr"},
        {"steps": 3, "grid": "inner", "spacing": "leading"},
        {"timesteps": (19.0, 10.0, 4.0)},
    ):
        assert len(timesteps(settings)) == walk_length(SMALL, Sampling(**settings)), settings
    assert timesteps({}) == list(range(20))[::-1]


def test_timesteps_override_steps_spacing_offset_and_grid():
    given = {"timesteps": (19.0, 10.0, 4.0)}
    grid = sampling_grid(SMALL, Sampling(**given))
    assert grid.t.tolist() == [19, 10, 4]
    assert jnp.issubdtype(grid.t.dtype, jnp.integer)
    np.testing.assert_allclose(timesteps({"timesteps": (18.5, 10.0)}), [18.5, 10.0])
    for others in (
        {"steps": 7},
        {"spacing": "karras"},
        {"spacing": "leading", "offset": 2},
        {"grid": "inner", "steps": 7, "spacing": "leading"},
    ):
        assert timesteps(given | others) == [19, 10, 4], others
        assert walk_length(SMALL, Sampling(**given, **others)) == 3, others


def test_the_offset_raises_leading_timesteps_and_no_others():
    leading = {"sampler": "ddim", "steps": 4, "spacing": "leading"}
    for grid in ("plain", "strides"):
        assert timesteps(leading | {"grid": grid}) == [15, 10, 5, 0]
        raised = sampling_grid(SMALL, Sampling(**leading, grid=grid, offset=2))
        assert raised.t.tolist() == [17, 12, 7, 2]
        assert int(raised.t_next[-1]) == CLEAN_DATA
        trailing = {"steps": 4, "grid": grid}
        assert timesteps(trailing | {"offset": 2}) == timesteps(trailing)
    cases = [
        (leading | {"offset": 5}, "timesteps must decrease strictly within 0..19"),
        (leading | {"offset": 5, "grid": "strides"}, "Offset 5 leads beyond the last timestep, 19"),
    ]
    assert_refused(timesteps, cases)


def test_a_grid_of_diffusers_replaces_the_plain_one():
    sampling = Sampling(sampler="unipc", steps=3, spacing="leading")
    assert sampling_grid(SMALL, sampling).t.tolist() == [12, 6, 0]
    inner = sampling_grid(SMALL, dataclasses.replace(sampling, grid="inner"))
    assert (inner.t.tolist(), inner.t_next.tolist()) == ([15, 10, 5], [10, 5, CLEAN_DATA])


def test_a_walk_ends_where_the_sampling_says():
    for settings, default_end in (
        ({}, CLEAN_DATA),
        ({"grid": "strides", "steps": 5}, CLEAN_DATA),
        ({"timesteps": (19.0, 9.0)}, CLEAN_DATA),
        ({"grid": "strides_to_0", "steps": 5}, 0),
    ):
        for end, expected in ((None, default_end), ("clean", CLEAN_DATA), ("sigma_min", 0)):
            grid = sampling_grid(SMALL, Sampling(**settings, end=end))
            assert int(grid.t_next[-1]) == expected, (settings, end)


def test_grids_in_sigma_scale_the_initial_noise_as_diffusers_does():
    """They start from sigma eps, which is sqrt(1 - alpha_bar) eps in our scaling."""
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
        ends = Edit(fractions=jnp.asarray([0.0, 0.5, 1.0], jnp.float32))
        edited = next(walk(KEYS, SMALL, network, SHAPE, sampling, 1, ends))
        np.testing.assert_allclose(edited[0], expected[0], rtol=1e-5, err_msg=f"{grid}, {spacing}")


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
