"""Edits, and walks that start from an image: noise levels, exact moments, refusals."""

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from helpers.editing import (
    CURVED,
    GAUSSIAN,
    IMAGES,
    KEYS,
    LEFT,
    MU,
    NOISE,
    STD,
    signal_and_noise,
    start,
    walk,
)
from helpers.refusals import assert_refused
from helpers.samplers import grid_of

from ddpm_jax import samplers
from ddpm_jax.generation.editing import Edit, add_noise, inpaint, invert, truncate
from ddpm_jax.samplers import sample, sample_keys


def test_strength_is_the_fraction_of_rows_to_walk():
    whole = grid_of(10)
    for strength, n in ((1.0, 10), (0.6, 6), (0.55, 6), (0.1, 1), (0.001, 1)):
        part = truncate(whole, strength)
        assert part.i.tolist() == list(range(10))[-n:], strength
        for table, part_table in zip(whole[:-1], part[:-1], strict=True):
            np.testing.assert_array_equal(np.asarray(table)[-n:], part_table, str(strength))
        assert part.schedule is whole.schedule


def test_a_strength_out_of_range_is_refused():
    message = "strength must be above 0 and at most 1"
    grid = grid_of(10)
    assert_refused(
        lambda strength: truncate(grid, strength),
        [(strength, message) for strength in (0.0, -0.1, 1.01, float("nan"))],
    )


def test_an_image_gets_the_first_noise_level_and_the_noise_of_its_key():
    for strength in (1.0, 0.5):
        part = truncate(grid_of(10), strength)
        signal, noise = signal_and_noise(part.t[0])
        expected = signal * np.asarray(IMAGES, float) + noise * np.asarray(NOISE, float)
        np.testing.assert_allclose(add_noise(KEYS, part, IMAGES), expected, atol=1e-6)


def test_images_of_integers_are_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    levels = jnp.zeros(IMAGES.shape, jnp.uint8)
    masks = jnp.zeros((*IMAGES.shape[:3], 1), bool)
    with pytest.raises(ValueError, match=r"Images must be floats, not uint8"):
        add_noise(KEYS, grid_of(5), levels)
    with pytest.raises(ValueError, match=r"Images must be floats, not uint8"):
        inpaint(samplers.make("ddim"), levels, masks)
    with pytest.raises(ValueError, match=r"Images must be floats, not uint8"):
        invert(KEYS, CURVED, samplers.make("ddim"), grid_of(5), levels)


def test_a_noisy_image_is_denoised_to_the_exact_posterior_moments():
    """x0 given the image p: N(MU + gain signal (p - MU), gain^2 noise^2 + Var[x0 | xt])."""
    keys = sample_keys(1, jnp.arange(64))
    grid = truncate(grid_of(1000), 0.3)
    p = jnp.full((64, 12, 12, 1), -0.8)
    x0 = sample(keys, GAUSSIAN, samplers.make("ddpm"), grid, add_noise(keys, grid, p))
    signal, noise = signal_and_noise(grid.t[0])
    gain = STD**2 * signal / (STD**2 * signal**2 + noise**2)
    mean = MU + gain * signal * (-0.8 - MU)
    var = gain**2 * noise**2 + STD**2 * noise**2 / (STD**2 * signal**2 + noise**2)
    x0 = np.asarray(x0, float)
    assert abs(x0.mean() - mean) < 5 * np.sqrt(var / x0.size) + 2e-3
    assert abs(x0.std() / np.sqrt(var) - 1) < 5 / np.sqrt(2 * x0.size) + 2e-3
    assert abs(mean - MU) > 0.02


def test_a_masked_walk_starts_from_pure_noise_unless_strength_is_below_1():
    for strength in (1.0, 0.5):
        edit = Edit(images=IMAGES, masks=LEFT, strength=strength)
        grid = edit.grid(grid_of(8), samplers.make("ddpm"))
        expected = NOISE if strength == 1 else add_noise(KEYS, truncate(grid_of(8), 0.5), IMAGES)
        np.testing.assert_allclose(start(KEYS, edit, grid, NOISE), expected, atol=1e-6)


def test_edits_with_equal_shapes_share_one_program():
    def num_programs():
        return samplers._walk_jit._cache_size()

    # Both strengths walk 4 of 8 steps.
    edits = [
        Edit(images=images, masks=masks, strength=strength).take(jnp.arange(6))
        for images, strength in ((IMAGES, 0.5), (IMAGES[::-1], 0.52))
        for masks in (LEFT, jnp.logical_not(LEFT))
    ]
    walk(edits[0])
    before = num_programs()
    samples = [walk(edit) for edit in edits]
    assert num_programs() == before
    assert len({np.asarray(x0).tobytes() for x0 in samples}) == 4


def test_an_edit_repeats_its_arrays_in_turn():
    edit = Edit(images=IMAGES[:2], masks=LEFT[:1], repeats=2, jump_length=3).take(jnp.arange(3, 6))
    np.testing.assert_array_equal(edit.images, np.asarray(IMAGES)[[1, 0, 1]])
    np.testing.assert_array_equal(edit.masks, np.asarray(LEFT)[[0, 0, 0]])
    assert (edit.repeats, edit.jump_length) == (2, 3)


def test_contradictory_edits_are_refused():
    images = {"images": IMAGES}
    end_images = {"end_images": IMAGES}
    masks = {"masks": LEFT}
    fractions = {"fractions": jnp.zeros(6)}
    invert = {"invert": True}
    cases = [
        (images | end_images, "needs images, end_images and fractions"),
        (images | fractions, "needs images, end_images and fractions"),
        (end_images | fractions, "needs images, end_images and fractions"),
        (masks, "Masks, inversion and strength need images"),
        (invert, "Masks, inversion and strength need images"),
        ({"strength": 0.5}, "Masks, inversion and strength need images"),
        (fractions | {"strength": 0.5}, "Masks, inversion and strength need images"),
        (images | {"repeats": 2}, "repeats needs masks"),
        (images | masks | invert, "Masks do not go with fractions or inversion"),
        (images | end_images | masks | fractions, "Masks do not go with fractions or inversion"),
    ]
    assert_refused(lambda settings: Edit(**settings), cases)
