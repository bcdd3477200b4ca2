"""Edits as a whole, and walks that start from a picture: levels, moments of Bayes, batches, mistakes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.editing import ALPHA_BAR, CURVED, GAUSSIAN, IMAGES, KEYS, LEFT, MU, NOISE, STD, grid_of, walk

from ddpm_jax import samplers
from ddpm_jax.generation.editing import Edit, last_part, noised
from ddpm_jax.samplers import sample, sample_keys

# Starting from a picture


@pytest.mark.parametrize(("strength", "count"), [(1.0, 10), (0.6, 6), (0.55, 6), (0.1, 1), (0.001, 1)])
def test_strength_is_the_share_of_the_rows_that_is_walked_as_it_was(strength, count):
    whole, part = grid_of(10), last_part(grid_of(10), strength)
    assert part.i.tolist() == list(range(10))[-count:]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[-count:], b), whole[:-1], part[:-1])
    assert part.schedule is whole.schedule


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.01, float("nan")])
def test_strengths_out_of_range_are_refused(strength):
    with pytest.raises(ValueError, match="strength must be above 0 and at most 1"):
        last_part(grid_of(10), strength)


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_picture_starts_at_the_level_of_the_first_row_with_the_samples_own_noise(strength):
    part = last_part(grid_of(10), strength)
    signal = np.sqrt(ALPHA_BAR[int(part.t[0])])
    wanted = signal * np.asarray(IMAGES, float) + np.sqrt(1 - signal**2) * np.asarray(NOISE, float)
    np.testing.assert_allclose(noised(KEYS, part, IMAGES), wanted, atol=1e-6)


@pytest.mark.parametrize("strength", [0.3, 0.5])
def test_a_picture_noised_and_denoised_has_the_moments_of_bayes(strength):
    """x0' given the picture p: N(MU + gain signal (p - MU), gain^2 noise^2 + Var[x0 | xt])."""
    keys = sample_keys(1, jnp.arange(64))
    grid = last_part(grid_of(1000), strength)
    p = jnp.full((64, 12, 12, 1), -0.8)
    x0 = sample(keys, GAUSSIAN, samplers.make("ddpm"), grid, noised(keys, grid, p))
    signal2 = ALPHA_BAR[int(grid.t[0])]
    gain = STD**2 * np.sqrt(signal2) / (STD**2 * signal2 + 1 - signal2)
    mean = MU + gain * np.sqrt(signal2) * (-0.8 - MU)
    var = gain**2 * (1 - signal2) + STD**2 * (1 - signal2) / (STD**2 * signal2 + 1 - signal2)
    found = np.asarray(x0, float)
    assert abs(found.mean() - mean) < 5 * np.sqrt(var / found.size) + 2e-3
    assert abs(found.std() / np.sqrt(var) - 1) < 5 / np.sqrt(2 * found.size) + 2e-3
    assert abs(mean - MU) > 0.02


# Edits as a whole

EDITS = {
    "strength": Edit(images=IMAGES[:2], strength=0.5),
    "mask": Edit(images=IMAGES[:2], masks=LEFT[:1], repeats=2, jump=2),
    "mask and strength": Edit(images=IMAGES[:1], masks=LEFT[:1], strength=0.5),
    "pictures": Edit(images=IMAGES[:1], others=IMAGES[1:2], shares=jnp.linspace(0, 1, 6), strength=0.5),
    "noises": Edit(shares=jnp.linspace(0, 1, 6)),
    "inversion": Edit(images=IMAGES[:2], inverted=True),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_sample_is_of_its_own_rows_whatever_the_batch(name):
    edit, sampler = EDITS[name], "ddim" if name == "inversion" else "ddpm"
    whole = walk(edit.of(jnp.arange(6)), sampler)
    part = walk(edit.of(jnp.arange(3, 5)), sampler, keys=KEYS[3:5])
    np.testing.assert_allclose(part, whole[3:5], atol=0.5 / 255)
    assert jnp.max(jnp.abs(whole[3] - whole[4])) > 0.01


def test_a_masked_start_is_noise_alone_unless_strength_says_otherwise():
    def start(edit):
        ddpm = samplers.make("ddpm")
        return edit.start(KEYS, CURVED, ddpm, edit.grid(grid_of(8), ddpm), NOISE)

    whole, part = (Edit(images=IMAGES, masks=LEFT, strength=strength) for strength in (1.0, 0.5))
    np.testing.assert_array_equal(start(whole), NOISE)
    np.testing.assert_array_equal(start(part), noised(KEYS, last_part(grid_of(8), 0.5), IMAGES))
    everything = dataclasses.replace(whole, masks=jnp.ones_like(LEFT))
    plain = sample(KEYS, CURVED, samplers.make("ddpm"), grid_of(8), NOISE)
    np.testing.assert_allclose(walk(everything), plain, atol=1e-6)


def test_pictures_masks_shares_and_strengths_of_equal_shape_do_not_recompile():
    def compiled():
        return samplers._walk_jit._cache_size()

    edits = [
        [Edit(images=IMAGES[::step], masks=masks, strength=strength).of(jnp.arange(6)) for masks in (LEFT, ~LEFT)]
        for step, strength in ((1, 0.5), (-1, 0.52))  # 4 of 8 steps, both
    ]
    walk(edits[0][0])
    before = compiled()
    others = [walk(edit) for pair in edits for edit in pair]
    assert compiled() == before
    assert len({np.asarray(other).tobytes() for other in others}) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images": IMAGES, "others": IMAGES}, "needs images, others and shares"),
        ({"images": IMAGES, "shares": jnp.zeros(6)}, "needs images, others and shares"),
        ({"others": IMAGES, "shares": jnp.zeros(6)}, "needs images, others and shares"),
        ({"masks": LEFT}, "masks and inversion are for images"),
        ({"inverted": True}, "masks and inversion are for images"),
        ({"images": IMAGES, "repeats": 2}, "repeats are for masks"),
        ({"images": IMAGES, "masks": LEFT, "inverted": True}, "masks go neither with shares nor with inversion"),
        ({"images": IMAGES, "others": IMAGES, "masks": LEFT, "shares": jnp.zeros(6)}, "masks go neither"),
    ],
)
def test_edits_that_contradict_themselves_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Edit(**settings)
