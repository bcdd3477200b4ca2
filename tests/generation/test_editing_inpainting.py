"""Inpainting: RePaint's order of states, known pixels, an exact conditional, noise."""

import itertools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from helpers.editing import (
    ALL,
    ALPHA_BAR,
    CURVED,
    GAUSSIAN,
    IMAGES,
    KEYS,
    LEFT,
    NOISE,
    NOTHING,
    assert_moments,
)
from helpers.refusals import assert_refused
from helpers.samplers import SCHEDULE, grid_of, naive_walk, step
from jax.tree_util import Partial

from ddpm_jax import samplers
from ddpm_jax.diffusion.grid import make_grid
from ddpm_jax.diffusion.prediction import make_denoiser
from ddpm_jax.generation.editing import inpaint
from ddpm_jax.generation.repaint import repaint_grid, repaint_order
from ddpm_jax.samplers import initial_noise, sample, sample_keys, step_noise

MANY = sample_keys(2, jnp.arange(64))
FLAT = jnp.full((64, 12, 12, 1), 0.7)
EVERYWHERE = jnp.full(FLAT.shape, True)
NOWHERE = jnp.full(FLAT.shape, False)


def published_order(steps, repeats, jump_length):
    """`get_schedule_jump` of the RePaint authors (t from T-1 to 0, then -1), as our states."""
    jumps = dict.fromkeys(range(0, steps - jump_length, jump_length), repeats - 1)
    t = steps
    states = []
    while t >= 1:
        t -= 1
        states.append(t)
        if jumps.get(t, 0) > 0:
            jumps[t] -= 1
            for _ in range(jump_length):
                t += 1
                states.append(t)
    return [steps - 1 - t for t in [*states, -1]]


def with_single_jumps_up(states):
    """Leave out the states inside each series of steps up."""
    triples = zip(states, states[1:], states[2:], strict=False)
    inner = [state for before, state, after in triples if not before > state > after]
    return [states[0], *inner, states[-1]]


def test_the_order_is_the_published_one_with_each_jump_up_in_one_row():
    cases = (10, 3, 3), (11, 2, 5), (13, 4, 1), (250, 10, 10), (7, 2, 6), (5, 1, 3), (2, 3, 1)
    for case in cases:
        assert repaint_order(*case) == with_single_jumps_up(published_order(*case)), case


def test_every_row_of_a_stretch_is_repeated():
    for steps, repeats, jump_length in ((10, 3, 3), (12, 2, 5), (20, 4, 1)):
        states = repaint_order(steps, repeats, jump_length)
        rows_down = [a for a, b in itertools.pairwise(states) if b > a]
        num_single = (steps - 1) % jump_length
        expected = [1] * num_single + [repeats] * (steps - 1 - num_single) + [1]
        counts = [rows_down.count(i) for i in range(steps)]
        assert counts == expected, (steps, repeats, jump_length)


def test_each_row_of_a_repaint_grid_starts_where_the_last_one_ended():
    plain = grid_of(10)
    grid = jax.tree.map(np.asarray, repaint_grid(plain, 3, 4)._replace(schedule=None))
    np.testing.assert_array_equal(grid.t_next[:-1], grid.t[1:])
    np.testing.assert_allclose(grid.sqrt_alpha_bar_next[:-1], grid.sqrt_alpha_bar[1:], rtol=1e-6)
    up = grid.t_next > grid.t
    assert up.sum() == 4
    assert set(grid.t[~up].tolist()) == set(plain.t.tolist())
    assert grid.i.tolist() == list(range(len(grid.i)))
    assert grid.t_next[-1] == -1
    assert repaint_grid(plain, 1, 10) is plain


@pytest.mark.parametrize(("steps", "jump_length"), [(12, 10), (6, 5)])
def test_a_stretch_is_as_in_the_paper_or_as_long_as_the_steps_allow(steps, jump_length):
    ours = repaint_grid(grid_of(steps), 2, None)
    np.testing.assert_array_equal(ours.i, repaint_grid(grid_of(steps), 2, jump_length).i)
    np.testing.assert_array_equal(ours.t, repaint_grid(grid_of(steps), 2, jump_length).t)


def test_invalid_repaint_grids_are_refused():
    grid = grid_of(10)
    cases = [
        ((0, 3), "repeats must be at least 1, not 0"),
        ((2, 0), "jump_length must be at least 1 and less than the 10 steps, not 0"),
        ((2, 10), "less than the 10 steps, not 10"),
    ]
    assert_refused(lambda case: repaint_grid(grid, *case), cases)
    with pytest.raises(ValueError, match="One step has no stretch to repeat: take more steps"):
        repaint_grid(grid_of(1), 2, 1)


def test_every_sampler_can_inpaint_with_repeats():
    """A row up starts a new state of the sampler, with the same structure."""
    grid = repaint_grid(grid_of(4), 2, 2)
    for name in samplers.names():
        sampler = inpaint(samplers.make(name), IMAGES, LEFT)
        try:
            x0 = jax.eval_shape(sample, KEYS, CURVED, sampler, grid, NOISE)
        except TypeError as error:
            raise AssertionError(f"{name}: {error}") from error
        assert (x0.shape, x0.dtype) == (NOISE.shape, NOISE.dtype), name


@pytest.mark.parametrize("name", ["ddpm", "dpmpp_2m"])
def test_pixels_outside_the_mask_are_kept_and_those_inside_are_sampled(name):
    """A full mask without repeats is plain sampling. An empty mask gives the images themselves."""
    sampler = samplers.make(name)
    up_and_down = repaint_grid(grid_of(4), 2, 2)
    # Of the same length as `up_and_down`, so that both share one program.
    down = grid_of(len(up_and_down.i))
    plain = np.asarray(sample(KEYS, CURVED, sampler, down, NOISE))

    def inpainted(masks, grid=down):
        return np.asarray(sample(KEYS, CURVED, inpaint(sampler, IMAGES, masks), grid, NOISE))

    np.testing.assert_allclose(inpainted(ALL), plain, atol=1e-6)
    np.testing.assert_array_equal(inpainted(NOTHING), IMAGES)
    # Also if the walk ends at a noise level.
    t = np.linspace(999, 100, len(down.i)).round().astype(int)
    np.testing.assert_array_equal(inpainted(NOTHING, make_grid(SCHEDULE, t, end=0)), IMAGES)
    left = np.broadcast_to(LEFT, IMAGES.shape)
    for x0 in (inpainted(LEFT), inpainted(LEFT, up_and_down)):
        np.testing.assert_array_equal(x0[~left], np.asarray(IMAGES)[~left])
        assert np.all(np.any(left & (np.abs(x0 - plain) > 1e-3), (1, 2, 3)))
        assert np.max(np.abs(x0)) <= 1.5


CORRELATION = 0.9
VALUES, VECTORS = np.linalg.eigh(np.array([[1, CORRELATION], [CORRELATION, 1]]))


def pair_x0(xt, t):
    """E[x0 | xt] for images of two pixels that are correlated standard normals."""
    signal, noise = (level[0] for level in SCHEDULE.signal_and_noise(t))
    values = jnp.asarray(VALUES, jnp.float32)
    vectors = jnp.asarray(VECTORS, jnp.float32)
    gain = (vectors * (signal * values / (signal**2 * values + noise**2))[None]) @ vectors.T
    return jnp.einsum("ij,bhjc->bhic", gain, xt)


def test_resampling_is_closer_to_the_exact_conditional_than_replacement():
    """One pixel of a correlated pair is known to be 1, so the other is N(0.9, 0.436^2)."""
    n = 500
    keys = sample_keys(0, jnp.arange(n))
    denoise = make_denoiser(SCHEDULE, Partial(pair_x0), "x0", None)
    xT = initial_noise(keys, (1, 2, 1))
    images = jnp.asarray(np.tile(np.float32([1, 0])[None, None, :, None], (n, 1, 1, 1)))
    sampler = inpaint(samplers.make("ddpm"), images, images == 0)
    errors = []
    for repeats in (1, 5):
        grid = repaint_grid(grid_of(50), repeats, 1)
        *_, x0 = naive_walk(sampler, keys, denoise, grid, xT)
        x0 = np.asarray(x0, float)
        assert np.all(x0[:, 0, 0, 0] == 1)
        errors.append(abs(x0[:, 0, 1, 0].mean() - CORRELATION))
    assert errors[0] > 0.25
    assert errors[1] < errors[0] / 2


def test_a_row_up_adds_forward_noise_and_resets_the_state_without_the_network():
    sampler = samplers.make("dpmpp_2m")
    grid = repaint_grid(grid_of(10), 2, 3)
    row = grid.row(int(np.argmax(np.asarray(grid.t_next) > np.asarray(grid.t))))
    broken = make_denoiser(SCHEDULE, lambda xt, t: xt * jnp.nan)
    fresh = sampler.init(FLAT)
    used = jax.tree.map(lambda x: x + 1, fresh)
    masked = inpaint(sampler, FLAT, EVERYWHERE)
    x_next, state = step(masked, MANY, broken, FLAT, row, used)
    ratio = ALPHA_BAR[int(row.t_next)] / ALPHA_BAR[int(row.t)]
    assert_moments(x_next, 0.7 * np.sqrt(ratio), np.sqrt(1 - ratio))
    jax.tree.map(np.testing.assert_array_equal, state, sampler.init(x_next))


def test_the_noise_of_known_pixels_is_independent_and_new_in_every_row():
    grid = grid_of(10)
    xt = jnp.zeros_like(FLAT)
    sampler = inpaint(samplers.make("ddpm"), xt, NOWHERE)
    noises = [np.asarray(initial_noise(MANY, xt.shape[1:]))]
    for i in (3, 4):
        row = grid.row(i)
        known, _ = step(sampler, MANY, GAUSSIAN, xt, row, ())
        noises.append(np.asarray(known) / np.asarray(row.sqrt_one_minus_alpha_bar_next))
        noises.append(np.asarray(step_noise(MANY, row, xt)))
    for noise in noises:
        assert_moments(noise, 0, 1)
    correlations = np.corrcoef(np.stack(noises).reshape(5, -1)) - np.eye(5)
    assert np.abs(correlations).max() < 5 / np.sqrt(xt.size)


def test_a_mask_of_another_size_is_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    message = r"Masks of size \(4, 3\) do not fit images of size \(4, 6\)"
    with pytest.raises(ValueError, match=message):
        inpaint(samplers.make("ddpm"), IMAGES, LEFT[:, :, :3])


def test_a_mask_of_numbers_is_refused(monkeypatch):
    """Every number but 0 would be redrawn as a whole."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for dtype in (jnp.float32, jnp.uint8):
        with pytest.raises(ValueError, match=r"masks must be True where .*: compare them, as in"):
            inpaint(samplers.make("ddpm"), IMAGES, LEFT.astype(dtype))


def test_masks_images_and_samples_of_other_numbers_are_refused(monkeypatch):
    """JAX would share one mask or one image between all samples."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=r"masks must have shape \(6, 4, 6, 1\)"):
        inpaint(samplers.make("ddpm"), IMAGES, LEFT[:1])
    sampler = inpaint(samplers.make("ddpm"), IMAGES[:1], LEFT[:1])
    with pytest.raises(ValueError, match=r"images must have shape \(6, 4, 6, 2\)"):
        sampler.step(KEYS, CURVED, NOISE, grid_of(2).row(0), ())
