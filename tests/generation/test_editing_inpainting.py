"""Inpainting: RePaint's timetable, what is kept, an exact conditional, the noise of each row."""

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
    SCHEDULE,
    assert_moments,
    grid_of,
    step,
)
from helpers.refusals import assert_refused
from jax.tree_util import Partial

from ddpm_jax import samplers
from ddpm_jax.diffusion.prediction import make_denoiser
from ddpm_jax.generation.editing import inpaint, repaint_grid, repaint_order
from ddpm_jax.samplers import initial_noise, sample, sample_keys, step_noise

MANY = sample_keys(2, jnp.arange(64))
FLAT = jnp.full((64, 12, 12, 1), 0.7)
EVERYWHERE, NOWHERE = (jnp.full(FLAT.shape, value) for value in (True, False))


def jumps_of_lugmayr(steps, repeats, jump):
    """`get_schedule_jump` of the RePaint authors (t from T-1 to 0, then -1), as our states."""
    jumps = dict.fromkeys(range(0, steps - jump, jump), repeats - 1)
    t, states = steps, []
    while t >= 1:
        t -= 1
        states.append(t)
        if jumps.get(t, 0) > 0:
            jumps[t] -= 1
            for _ in range(jump):
                t += 1
                states.append(t)
    return [steps - 1 - t for t in [*states, -1]]


def without_passing_up(states):
    """The states without those inside a way up."""
    triples = zip(states, states[1:], states[2:], strict=False)
    inner = [state for before, state, after in triples if not before > state > after]
    return [states[0], *inner, states[-1]]


def test_the_timetable_is_the_published_one_with_each_way_up_in_one_row():
    shapes = (10, 3, 3), (11, 2, 5), (13, 4, 1), (250, 10, 10), (7, 2, 6), (5, 1, 3), (2, 3, 1)
    for shape in shapes:
        assert repaint_order(*shape) == without_passing_up(jumps_of_lugmayr(*shape)), shape


def test_every_row_of_a_stretch_is_walked_as_often_as_asked():
    for steps, repeats, jump in ((10, 3, 3), (12, 2, 5), (20, 4, 1)):
        states = repaint_order(steps, repeats, jump)
        walked = [a for a, b in itertools.pairwise(states) if b > a]
        once = (steps - 1) % jump
        expected = [1] * once + [repeats] * (steps - 1 - once) + [1]
        assert [walked.count(i) for i in range(steps)] == expected, (steps, repeats, jump)


def test_each_row_of_a_resampled_grid_starts_where_the_last_one_ended():
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


def test_impossible_resampling_is_refused():
    grid = grid_of(10)
    cases = [
        ((0, 3), "repeats must be at least 1, not 0"),
        ((2, 0), "jump must be at least 1 and less than the 10 steps of the walk, not 0"),
        ((2, 10), "less than the 10 steps of the walk, not 10"),
    ]
    assert_refused(lambda case: repaint_grid(grid, *case), cases)


def test_a_walk_with_every_sampler_can_be_masked_and_resampled():
    """A row that goes up starts the sampler's state afresh, in the same structure."""
    grid = repaint_grid(grid_of(4), 2, 2)
    for name in samplers.names():
        sampler = inpaint(samplers.make(name), IMAGES, LEFT)
        try:
            x0 = jax.eval_shape(sample, KEYS, CURVED, sampler, grid, NOISE)
        except TypeError as error:
            raise AssertionError(f"{name}: {error}") from error
        assert (x0.shape, x0.dtype) == (NOISE.shape, NOISE.dtype), name


@pytest.mark.parametrize("name", ["ddpm", "dpmpp_2m"])
def test_what_is_outside_the_mask_is_kept_and_what_is_inside_is_sampled(name):
    """A full mask and one pass are plain sampling; an empty mask gives the images themselves."""
    sampler = samplers.make(name)
    up_and_down = repaint_grid(grid_of(4), 2, 2)
    down = grid_of(len(up_and_down.i))
    plain = np.asarray(sample(KEYS, CURVED, sampler, down, NOISE))

    def masked(masks, grid=down):
        return np.asarray(sample(KEYS, CURVED, inpaint(sampler, IMAGES, masks), grid, NOISE))

    np.testing.assert_allclose(masked(ALL), plain, atol=1e-6)
    np.testing.assert_array_equal(masked(NOTHING), IMAGES)
    left = np.asarray(LEFT)
    for half in (masked(LEFT), masked(LEFT, up_and_down)):
        np.testing.assert_array_equal(half[~left], np.asarray(IMAGES)[~left])
        assert np.all(np.any(left & (np.abs(half - plain) > 1e-3), (1, 2, 3)))
        assert np.max(np.abs(half)) <= 1.5


CORRELATION = 0.9
VALUES, VECTORS = np.linalg.eigh(np.array([[1, CORRELATION], [CORRELATION, 1]]))


def pair_x0(xt, t):
    """E[x0 | xt] where the two pixels of an image are correlated standard normals."""
    signal, noise = (level[0] for level in SCHEDULE.signal_and_noise(t))
    values, vectors = jnp.asarray(VALUES, jnp.float32), jnp.asarray(VECTORS, jnp.float32)
    gain = (vectors * (signal * values / (signal**2 * values + noise**2))[None]) @ vectors.T
    return jnp.einsum("ij,bhjc->bhic", gain, xt)


def test_resampling_comes_nearer_to_the_exact_conditional_than_replacement():
    """One pixel of a correlated pair is known to be 1, so the other is N(0.9, 0.436^2).

    Mean and deviation of 20,000 samples: replacement alone 0.602, 0.522; resampled 5 times 0.833,
    0.393 (errors 0.003).
    """
    keys = sample_keys(0, jnp.arange(1500))
    denoise = make_denoiser(SCHEDULE, Partial(pair_x0), "x0", None)
    xT = initial_noise(keys, (1, 2, 1))
    images = jnp.asarray(np.tile(np.float32([1, 0])[None, None, :, None], (1500, 1, 1, 1)))
    sampler = inpaint(samplers.make("ddpm"), images, images == 0)
    errors = []
    for repeats in (1, 5):
        grid = repaint_grid(grid_of(50), repeats, 1)
        x0 = np.asarray(sample(keys, denoise, sampler, grid, xT), float)
        assert np.all(x0[:, 0, 0, 0] == 1)
        errors.append(abs(x0[:, 0, 1, 0].mean() - CORRELATION))
    assert errors[0] > 0.25
    assert errors[1] < 0.067 + 5 * 0.4 / np.sqrt(1500)


def test_a_row_that_goes_up_adds_forward_noise_and_forgets_without_asking_the_network():
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


def test_the_noise_of_the_known_part_is_its_own_and_new_in_every_row():
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
    message = r"masks of \(4, 3\) pixels are for pictures of that size, not \(4, 4\)"
    with pytest.raises(ValueError, match=message):
        inpaint(samplers.make("ddpm"), IMAGES, LEFT[:, :, :3])
