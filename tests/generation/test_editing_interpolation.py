"""Between two ends: slerp by its angles, pictures and noises where they start."""

import jax.numpy as jnp
import numpy as np
from helpers.editing import ALPHA_BAR, CURVED, IMAGES, KEYS, NOISE, SHAPE, assert_moments, grid_of, walk

from ddpm_jax import samplers
from ddpm_jax.diffusion.schedule import per_example
from ddpm_jax.generation.editing import Edit, lerp, slerp
from ddpm_jax.samplers import initial_noise


def test_slerp_keeps_the_length_and_turns_evenly():
    a, b = NOISE[:3], NOISE[3:]
    unit = lambda x: x / jnp.linalg.norm(x.reshape(3, -1), axis=1)[:, None, None, None]  # noqa: E731
    a, b = unit(a), unit(b)
    dot = lambda x, y: np.asarray(jnp.sum(x * y, (1, 2, 3)), float)  # noqa: E731
    angle = np.arccos(dot(a, b))
    for share in (0.0, 0.25, 0.5, 1.0):
        between = slerp(a, b, jnp.full(3, share))
        np.testing.assert_allclose(dot(between, between), 1, atol=1e-5)
        np.testing.assert_allclose(dot(between, a), np.cos(share * angle), atol=1e-5)
        np.testing.assert_allclose(dot(between, b), np.cos((1 - share) * angle), atol=1e-5)


def test_slerp_between_ends_that_point_alike_is_straight():
    share = jnp.array([0.0, 0.25, 1.0])
    np.testing.assert_allclose(slerp(NOISE[:3], 2 * NOISE[:3], share), lerp(NOISE[:3], 2 * NOISE[:3], share), rtol=1e-5)
    np.testing.assert_array_equal(slerp(jnp.zeros((3, *SHAPE)), NOISE[:3], share)[0], 0)


def test_between_two_pictures_the_noise_is_one_and_the_ends_are_theirs():
    """Section 4.4, Ho et al. 2020: xt = (1 - s) xt_a + s xt_b."""
    one = jnp.broadcast_to(KEYS[0], 6)
    a, b, shares = IMAGES[:1], IMAGES[1:2], jnp.linspace(0, 1, 6)
    edit = Edit(images=a, others=b, shares=shares, strength=0.5).of(jnp.arange(6))
    grid = edit.grid(grid_of(8), samplers.make("ddim"))
    start = edit.start(one, CURVED, samplers.make("ddpm"), grid, NOISE)
    signal, noise = np.sqrt(ALPHA_BAR[int(grid.t[0])]), np.sqrt(1 - ALPHA_BAR[int(grid.t[0])])
    mixed = per_example(1 - shares, a) * a + per_example(shares, b) * b
    np.testing.assert_allclose(start, signal * mixed + noise * NOISE[:1], atol=1e-5)
    found = walk(edit, keys=one)
    for i, image in ((0, a), (5, b)):
        alone = walk(Edit(images=image, strength=0.5).of(jnp.arange(6)), keys=one)
        np.testing.assert_allclose(found[i], alone[i], atol=1e-5)


def test_between_two_noises_the_first_is_the_samples_own():
    one = jnp.broadcast_to(KEYS[0], 6)
    shares = jnp.linspace(0, 1, 6)
    edit = Edit(shares=shares).of(jnp.arange(6))
    noise = initial_noise(one, SHAPE)
    start = edit.start(one, CURVED, samplers.make("ddpm"), edit.grid(grid_of(8), samplers.make("ddim")), noise)
    np.testing.assert_array_equal(start[0], noise[0])
    np.testing.assert_allclose(start, slerp(noise, jnp.broadcast_to(start[5], noise.shape), shares), atol=1e-5)
    assert abs(np.corrcoef(start[0].ravel(), start[5].ravel())[0, 1]) < 0.8
    many = Edit(shares=jnp.array([0.0, 0.5, 1.0])).of(jnp.arange(3))
    big = initial_noise(one[:3], (40, 40, 1))
    assert_moments(many.start(one[:3], CURVED, samplers.make("ddpm"), grid_of(8), big)[1], 0, 1)
