"""Drawing latents with an exact denoiser: text to image, image to image, inpainting."""

import jax.numpy as jnp
import numpy as np
from helpers.refusals import assert_refused
from jax.tree_util import Partial

from ddpm_jax import samplers
from ddpm_jax.diffusion.grid import grid_from_pairs, make_grid
from ddpm_jax.diffusion.prediction import from_eps
from ddpm_jax.diffusion.schedule import from_betas, scaled_linear_betas
from ddpm_jax.samplers import Sampler, initial_noise, sample_keys
from ddpm_jax.text_to_image.generate import (
    image_to_image,
    inpaint,
    keep_known,
    noised,
    rows_for_strength,
    text_to_image,
)

SCHEDULE = from_betas(scaled_linear_betas(1000, 0.00085, 0.012))
SHAPE = (4, 4, 4)
KEYS = sample_keys(0, jnp.arange(2))
EPS = initial_noise(KEYS, SHAPE)
LATENTS = initial_noise(sample_keys(1, jnp.arange(2)), SHAPE)
MASKS = jnp.zeros((2, 4, 4, 1), bool).at[:, 1:3, 1:].set(True)


def denoise_with(eps, xt, t):
    """A denoiser that knows the noise, so every step of an ODE sampler is exact."""
    coefficients = SCHEDULE.signal_and_noise(jnp.broadcast_to(t, xt.shape[:1]))
    return from_eps(xt, eps, *(table[:, None, None, None] for table in coefficients))


EXACT = Partial(denoise_with, EPS)
GRID = make_grid(SCHEDULE, [981.0, 700.0, 400.0, 1.0])
TO_SIGMA_MIN = make_grid(SCHEDULE, [981.0, 700.0, 400.0, 1.0], end=0)


def final(states):
    return np.asarray(list(states)[-1])


def test_text_to_image_yields_the_scaled_noise_and_every_chunk():
    ddim = samplers.make("ddim")
    states = list(text_to_image(KEYS, EXACT, ddim, GRID, EPS, initial_std=0.5, chunks=2))
    assert len(states) == 3
    np.testing.assert_array_equal(states[0], 0.5 * EPS)
    first = GRID.row(0)
    x0 = (0.5 - first.sqrt_one_minus_alpha_bar) * EPS / first.sqrt_alpha_bar
    np.testing.assert_allclose(states[-1], x0, rtol=1e-4, atol=1e-5)


def test_image_to_image_adds_the_given_noise_at_the_first_row():
    grid = rows_for_strength(GRID, 0.5)
    assert np.asarray(grid.t).tolist() == [400, 1]
    drawn = final(image_to_image(KEYS, EXACT, samplers.make("ddim"), grid, LATENTS, EPS))
    np.testing.assert_allclose(drawn, LATENTS, atol=1e-5)


def test_strength_counts_rows_as_diffusers_does():
    steps = 50
    t = np.arange(steps)[::-1] * 20
    grid = grid_from_pairs(SCHEDULE, t, np.append(t[1:], -1))
    # int(50 * 0.58) is 28, because 50 * 0.58 is 28.999...
    for strength, rows in ((1.0, 50), (0.6, 30), (0.58, 28), (0.02, 1)):
        assert len(rows_for_strength(grid, strength).i) == rows
    cases = [
        (0.0, "strength must be above 0"),
        (1.1, "at most 1, not 1.1"),
        (0.019, "Strength 0.019 leaves none of 50 steps: raise strength"),
    ]
    assert_refused(lambda strength: rows_for_strength(grid, strength), cases)


def test_known_latents_have_the_given_noise_in_every_row_and_none_at_the_end():
    def to_zero(keys, denoise, xt, row, state):
        return jnp.zeros_like(xt), state

    replaced = Sampler(Partial(lambda xT: ()), Partial(to_zero))
    sampler = keep_known(replaced, LATENTS, MASKS, EPS)
    for i in range(4):
        row = TO_SIGMA_MIN.row(i)
        x_next, _ = sampler.step(KEYS, EXACT, EPS, row, ())
        known = row.sqrt_alpha_bar_next * LATENTS + row.sqrt_one_minus_alpha_bar_next * EPS
        expected = LATENTS if i == 3 else known
        np.testing.assert_allclose(x_next, jnp.where(MASKS, 0, expected), atol=1e-6)


def test_inpainting_keeps_known_latents_and_redraws_the_others():
    ddim = samplers.make("ddim")
    other = Partial(denoise_with, 0.9 * EPS)
    start = noised(TO_SIGMA_MIN, LATENTS, EPS)
    drawn = final(inpaint(KEYS, other, ddim, TO_SIGMA_MIN, LATENTS, MASKS, EPS, chunks=4))
    again = final(inpaint(KEYS, other, ddim, TO_SIGMA_MIN, LATENTS, MASKS, EPS, start=start))
    np.testing.assert_allclose(drawn, again, atol=1e-6)
    kept = np.broadcast_to(~np.asarray(MASKS), drawn.shape)
    np.testing.assert_array_equal(drawn[kept], np.asarray(LATENTS)[kept])
    assert np.abs(drawn - LATENTS)[~kept].min() > 0
    from_noise = final(inpaint(KEYS, other, ddim, TO_SIGMA_MIN, LATENTS, MASKS, EPS, start=EPS))
    np.testing.assert_array_equal(from_noise[kept], np.asarray(LATENTS)[kept])
    assert np.abs(from_noise - drawn)[~kept].max() > 0.1
