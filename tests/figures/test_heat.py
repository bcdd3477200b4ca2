"""Heat over an image: where it is, how it looks, and the file with a row per word."""

import numpy as np
from helpers.images import load, random_images

from ddpm_jax.figures.heat import heat_over, save_heat


def corner(size, row, column):
    """A map of these sizes that is 1 at one pixel."""
    point = np.zeros(size, np.float32)
    point[row, column] = 1
    return point


def test_the_heat_lies_where_the_map_is_high():
    image = np.full((24, 32, 3), 128, np.uint8)
    drawn = heat_over(image, np.stack([corner((3, 4), 0, 3), corner((3, 4), 2, 0)]))
    assert drawn.shape == (2, 24, 32, 3)
    brightness = drawn.sum(-1).astype(int)
    assert np.unravel_index(brightness[0].argmax(), (24, 32)) < (8, 32)
    assert brightness[0, :8, 24:].mean() > 1.5 * brightness[0, 16:, :8].mean()
    assert brightness[1, 16:, :8].mean() > 1.5 * brightness[1, :8, 24:].mean()


def test_each_map_is_scaled_to_its_own_range_and_the_image_shows_in_grey():
    image = random_images(6, 6, 3)
    weak, strong = corner((6, 6), 1, 2), 100 + 50 * corner((6, 6), 1, 2)
    drawn = heat_over(image, np.stack([weak, strong, np.full((6, 6), 7, np.float32)]))
    np.testing.assert_array_equal(drawn[0], drawn[1])
    # A constant map has no heat, so only the image is left, with the colour of no heat.
    grey = drawn[2].astype(float).mean(-1)
    assert np.corrcoef(grey.ravel(), image.mean(-1).ravel())[0, 1] > 0.999


def test_the_file_has_a_row_per_word_and_shows_the_image_first(tmp_path):
    image = random_images(8, 8, 3)
    maps = np.stack([[corner((4, 4), 0, 0)] * 2, [corner((4, 4), 3, 3)] * 2])
    save_heat(image, ["$a$", "$$"], maps, ["all steps", "early"], tmp_path / "x.png")
    picture = load(tmp_path / "x.png")[..., :3]
    # Three cells of 96 pixels, and a border of 2 pixels around each.
    strip = picture[10 + 16 :, picture.shape[1] - 10 - 296 :]
    large = image.repeat(12, 0).repeat(12, 1)
    for row in range(2):
        top = 2 + row * 100
        np.testing.assert_array_equal(strip[top : top + 96, 2:98], large)
        heat = heat_over(large, maps[row])
        np.testing.assert_array_equal(strip[top : top + 96, 100:196], heat[0])
    assert len(strip) == 200 + 10
