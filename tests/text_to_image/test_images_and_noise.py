"""Images and masks as arrays, latents' posterior, and the noise by keys or PyTorch's seeds."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.refusals import assert_refused
from PIL import Image

from ddpm_jax.generation.torch_noise import torch_normal
from ddpm_jax.samplers import initial_noise, sample_keys
from ddpm_jax.text_to_image.images import (
    divisible_size,
    open_image,
    open_mask,
    paste_known,
    resize,
    resize_mask,
    shrink_mask,
)
from ddpm_jax.text_to_image.latents import posterior_sample
from ddpm_jax.text_to_image.noise import key_noise, torch_seed_noise

RED = np.full((6, 4, 3), (200, 10, 30), np.uint8)


def test_images_of_any_mode_become_rgb_and_masks_grey(tmp_path):
    transparent = np.concatenate([RED, np.zeros((6, 4, 1), np.uint8)], -1)
    grey = np.full((6, 4), 90, np.uint8)
    path = tmp_path / "red.png"
    Image.fromarray(RED).save(path)
    for given, expected in (
        (RED, RED),
        (Image.fromarray(RED), RED),
        (path, RED),
        (str(path), RED),
        (Image.fromarray(transparent), np.full_like(RED, 255)),
        (grey, np.full_like(RED, 90)),
        (grey[..., None], np.full_like(RED, 90)),
    ):
        np.testing.assert_array_equal(np.asarray(open_image(given)), expected)
    assert open_image(grey, 1).mode == "L"
    # What is transparent in a mask is not to be redrawn.
    strokes = np.full((6, 4, 4), 255, np.uint8)
    strokes[:, 2:, 3] = 0
    assert np.asarray(open_mask(strokes))[0].tolist() == [255, 255, 0, 0]


def test_invalid_images_are_refused(tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    cases = [
        (np.zeros((4, 4, 3), np.float32), r"must be uint8 .*, not float32 \(4, 4, 3\)"),
        (np.zeros((4, 4, 2), np.uint8), r"of 1, 3 or 4 channels, not uint8 \(4, 4, 2\)"),
        (np.zeros((4, 4, 5), np.uint8), r"of 1, 3 or 4 channels, not uint8 \(4, 4, 5\)"),
        (broken, "Cannot read the image .*broken.png"),
    ]
    assert_refused(open_image, cases)
    with pytest.raises(FileNotFoundError, match=r"There is no image .*none.png: check its path."):
        open_image(tmp_path / "none.png")


def test_resizing_is_lanczos_and_masks_are_cut_at_one_half():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8))
    expected = np.asarray(image.resize((16, 8), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(resize(image, 8, 16), expected)
    grey = Image.fromarray(np.array([[0, 127, 128, 255]], np.uint8))
    np.testing.assert_array_equal(resize_mask(grey, 1, 4)[..., 0], [[False, False, True, True]])


def test_a_mask_may_be_boolean_and_not_of_floats():
    mask = np.array([[False, True]])
    for given in (mask, mask[..., None]):
        assert np.asarray(open_mask(given)).tolist() == [[0, 255]]
    with pytest.raises(ValueError, match=r"A mask must be bool, or uint8 .*not float32"):
        open_mask(np.float32(mask))


def test_a_mask_of_latents_is_the_first_pixel_of_each_block():
    """torch.nn.functional.interpolate(mode="nearest") of 8 to 2 takes the pixels 0 and 4."""
    masks = np.zeros((1, 8, 8, 1), bool)
    masks[0, 0, 4] = True
    masks[0, 5:, :4] = True
    np.testing.assert_array_equal(shrink_mask(masks, 4)[0, ..., 0], [[False, True], [False, False]])


def test_pixels_outside_the_mask_are_pasted_back():
    masks = np.zeros((1, 6, 4, 1), bool)
    masks[0, 2:4] = True
    pasted = paste_known(np.zeros((1, 6, 4, 3), np.uint8), RED[None], masks)
    np.testing.assert_array_equal(pasted[0, 2:4], 0)
    np.testing.assert_array_equal(pasted[0, :2], RED[:2])


def test_a_size_that_does_not_divide_is_refused_with_its_neighbours():
    assert divisible_size(16, 24, 8) == (16, 24)
    cases = [
        ((100, 16), "height must be a multiple of 8 pixels, not 100: use 96 or 104."),
        ((16, 3), "width must be a multiple of 8 pixels, not 3: use 8."),
        ((0, 16), "height must be a multiple of 8 pixels, not 0: use 8."),
        ((-8, 16), "height must be a multiple of 8 pixels, not -8: use 8."),
    ]
    assert_refused(lambda size: divisible_size(*size, 8), cases)


def test_the_posterior_has_the_clipped_moments():
    mean = jnp.full((1, 2, 2, 1), 3.0)
    noise = jnp.full((1, 2, 2, 1), 2.0)
    for log_variance, std in ((np.log(4.0), 2.0), (-90.0, np.exp(-15.0)), (80.0, np.exp(10.0))):
        moments = jnp.concatenate([mean, jnp.full_like(mean, log_variance)], -1)
        np.testing.assert_allclose(posterior_sample(moments, noise), 3 + 2 * std, rtol=1e-6)
        np.testing.assert_array_equal(posterior_sample(moments, None), mean)


def test_noise_by_keys_starts_as_initial_noise_and_its_streams_are_independent():
    keys = sample_keys(3, jnp.arange(2))
    noise = key_noise(keys, (16, 16, 4))
    np.testing.assert_array_equal(noise.initial, initial_noise(keys, (16, 16, 4)))
    flat = np.stack([np.asarray(array).ravel() for array in noise])
    assert np.abs(np.corrcoef(flat) - np.eye(3)).max() < 0.1
    alone = key_noise(keys[1:], (16, 16, 4))
    for array, row in zip(noise, alone, strict=True):
        np.testing.assert_array_equal(array[1], row[0])


def test_noise_by_seeds_is_drawn_in_the_order_of_diffusers():
    """The latents of an image first, if it is encoded; then eps; then those of a masked image."""
    for encodes, order in ((True, ("image", "initial", "masked")), (False, ("initial", "masked"))):
        noise = torch_seed_noise("torch-cpu", [5, 6], (2, 3, 4), encodes)
        for row, seed in enumerate((5, 6)):
            drawn = torch_normal("torch-cpu", seed, [(4, 2, 3)] * len(order))
            for name, expected in zip(order, drawn, strict=True):
                array = np.asarray(getattr(noise, name)[row])
                np.testing.assert_array_equal(array, expected.transpose(1, 2, 0))
