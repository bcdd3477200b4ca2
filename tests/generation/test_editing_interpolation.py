"""Interpolation: slerp by its angles, and the starts between two images and two noises."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
from helpers.editing import (
    IMAGES,
    KEYS,
    NOISE,
    SHAPE,
    assert_moments,
    signal_and_noise,
    start,
)
from helpers.refusals import assert_refused
from helpers.samplers import grid_of

from ddpm_jax import samplers
from ddpm_jax.generation import editing
from ddpm_jax.generation.editing import Edit, add_noise, lerp
from ddpm_jax.samplers import initial_noise

SAME_KEYS = jnp.broadcast_to(KEYS[0], 6)
FRACTIONS = np.linspace(0, 1, 6, dtype=np.float32)
slerp = jax.jit(editing.slerp)


def dot(x, y):
    return np.sum(np.asarray(x, float) * np.asarray(y, float), (1, 2, 3))


def unit(x):
    """Divide each image by its length."""
    lengths = np.sqrt(dot(x, x))[:, None, None, None]
    return jnp.asarray(np.asarray(x) / lengths, jnp.float32)


def test_slerp_keeps_the_length_and_turns_uniformly():
    a, b = unit(NOISE[:3]), unit(NOISE[3:])
    angle = np.arccos(dot(a, b))
    for fraction in (0.0, 0.25, 0.5, 1.0):
        between = slerp(a, b, jnp.asarray(np.full(3, fraction, np.float32)))
        np.testing.assert_allclose(dot(between, between), 1, atol=1e-5)
        np.testing.assert_allclose(dot(between, a), np.cos(fraction * angle), atol=1e-5)
        np.testing.assert_allclose(dot(between, b), np.cos((1 - fraction) * angle), atol=1e-5)


def test_slerp_between_parallel_ends_is_linear():
    fractions = jnp.array([0.0, 0.25, 1.0])
    a = NOISE[:3]
    b = 2 * NOISE[:3]
    np.testing.assert_allclose(slerp(a, b, fractions), lerp(a, b, fractions), rtol=1e-5)
    np.testing.assert_array_equal(slerp(jnp.zeros((3, *SHAPE)), a, fractions)[0], 0)


def test_the_derivative_of_slerp_is_finite_everywhere():
    fractions = jnp.array([0.0, 0.25, 1.0])
    a = NOISE[:3]
    gradient = jax.jit(jax.grad(lambda a, b: jnp.sum(slerp(a, b, fractions) ** 2), (0, 1)))
    for b in (a, -a, jnp.zeros_like(a), NOISE[3:]):
        assert all(np.isfinite(each).all() for each in gradient(a, b))


def test_between_two_images_all_starts_have_the_same_noise():
    """Section 4.4, Ho et al. 2020: xt = (1 - s) xt_a + s xt_b."""
    ddpm = samplers.make("ddpm")
    images = {"images": IMAGES[:1], "end_images": IMAGES[1:2]}
    edit = Edit(**images, fractions=jnp.asarray(FRACTIONS), strength=0.5).take(jnp.arange(6))
    grid = edit.grid(grid_of(8), ddpm)
    signal, noise = signal_and_noise(grid.t[0])
    a, b = np.asarray(IMAGES[:2], float)
    fractions = FRACTIONS[:, None, None, None]
    expected = signal * ((1 - fractions) * a + fractions * b) + noise * np.asarray(NOISE[:1])
    np.testing.assert_allclose(start(SAME_KEYS, edit, grid, NOISE), expected, atol=1e-5)
    assert edit.sampler(ddpm) is ddpm


def test_between_two_noises_the_first_comes_from_the_key_and_the_other_is_independent():
    ddpm = samplers.make("ddpm")
    edit = Edit(fractions=jnp.asarray(FRACTIONS)).take(jnp.arange(6))
    noise = initial_noise(SAME_KEYS, (40, 40, 1))
    starts = start(SAME_KEYS, edit, edit.grid(grid_of(8), ddpm), noise)
    np.testing.assert_array_equal(starts[0], noise[0])
    other = jnp.broadcast_to(starts[5], noise.shape)
    np.testing.assert_allclose(starts, slerp(noise, other, jnp.asarray(FRACTIONS)), atol=1e-5)
    correlation = np.corrcoef(np.ravel(starts[0]), np.ravel(starts[5]))[0, 1]
    assert abs(correlation) < 5 / np.sqrt(1600)
    for i in (2, 5):
        assert_moments(starts[i], 0, 1)


def test_images_ends_and_fractions_must_match(monkeypatch):
    """JAX would share one end, one fraction, one key or one image between all samples."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    cases = [
        ((IMAGES, IMAGES[:1], FRACTIONS), r"b must have shape \(6, 4, 6, 2\) .* \(1, 4, 6, 2\)"),
        ((IMAGES, IMAGES, FRACTIONS[:1]), r"fraction must have shape \(6,\)"),
    ]
    for mix in (lerp, editing.slerp):
        assert_refused(lambda ends, mix=mix: mix(*ends), cases)
    grid = grid_of(2)
    assert_refused(lambda keys: add_noise(keys, grid, IMAGES), [(KEYS[:1], "keys must have shape")])
    arguments = KEYS, None, samplers.make("ddim"), grid, NOISE
    edits = [Edit(images=IMAGES[:1]), Edit(images=IMAGES[:, :2])]
    cases = [(edit, r"images must have shape \(6, 4, 6, 2\)") for edit in edits]
    assert_refused(lambda edit: edit.start(*arguments), cases)
