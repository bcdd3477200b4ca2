"""Grids, strips and GIFs: rounding, the position of every pixel, and the files written."""

import numpy as np
import pytest
from helpers.images import files, load, random_images
from PIL import Image

from ddpm_jax.data.pixels import channel_colours, to_image, to_uint8
from ddpm_jax.figures import image_grids
from ddpm_jax.figures.image_grids import check_output, check_paths, image_grid, save_images


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_level_survives_a_round_trip_through_floats(dtype):
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    images = (levels / 255 * 2 - 1).astype(dtype)
    np.testing.assert_array_equal(to_uint8(images), levels)


def test_values_are_rounded_not_truncated_and_clipped():
    images = np.array([0.4, 0.6, 1.4, 1.6, 126.4, 127.6, 254.4, 254.6]) / 127.5 - 1
    np.testing.assert_array_equal(to_uint8(images), [0, 1, 1, 2, 126, 128, 254, 255])
    # 0.0 is level 127.5, which truncation would turn into 127.
    assert to_uint8(np.zeros((1, 1, 1, 1), np.float32)).item() == 128
    np.testing.assert_array_equal(to_uint8(np.array([-1e30, -1.01, 1.01, 1e300])), [0, 0, 255, 255])
    half = np.linspace(-1, 1, 999, dtype=np.float16)
    np.testing.assert_array_equal(to_uint8(half), to_uint8(half.astype(np.float32)))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.array([np.inf, np.nan, 1.0, -np.inf]), "3 of 4 pixels are not finite"),
        (np.zeros(3, np.uint8), "uint8 are not floats"),
    ],
)
def test_to_uint8_rejects_integers_and_non_finite_pixels(images, message):
    with pytest.raises(ValueError, match=message):
        to_uint8(images)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("side", "factor"), [(8, 6), (28, 2), (47, 2), (48, 1), (64, 1)])
def test_grid_puts_every_pixel_in_its_place(side, factor, channels):
    images = random_images(5, side, side, channels)
    cell = side * factor
    picture = image_grid(images, columns=3, pad=2)
    grid = np.asarray(picture).reshape(2 * (cell + 2) + 2, -1, channels)
    assert grid.shape[1] == 3 * (cell + 2) + 2
    for i, image in enumerate(images):
        row, column = divmod(i, 3)
        top = 2 + row * (cell + 2)
        left = 2 + column * (cell + 2)
        for dy in range(factor):
            for dx in range(factor):
                rows = slice(top + dy, top + cell, factor)
                columns = slice(left + dx, left + cell, factor)
                np.testing.assert_array_equal(grid[rows, columns], image)
    assert (grid[:2] == 255).all()
    assert (grid[:, :2] == 255).all()
    assert (grid[-cell:, -cell:] == 255).all()  # the sixth cell has no image


@pytest.mark.parametrize(
    ("n", "columns", "rows"), [(1, 1, 1), (2, 2, 1), (5, 3, 2), (9, 3, 3), (10, 4, 3), (64, 8, 8)]
)
def test_grid_is_nearly_square(n, columns, rows):
    assert image_grid(random_images(n, 48, 48, 3), pad=0).size == (columns * 48, rows * 48)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((2, 8, 8, 1), np.float32, "call to_uint8"),
        ((8, 8, 1), np.uint8, "n h w c"),
        ((0, 8, 8, 1), np.uint8, "none empty"),
    ],
)
def test_arrays_that_are_no_batch_of_images_are_rejected(shape, dtype, message, tmp_path):
    for function in (image_grid, lambda images: save_images(images, tmp_path / "x.png")):
        with pytest.raises(ValueError, match=message):
            function(np.zeros(shape, dtype))
    assert not files(tmp_path)


def test_other_channels_than_rgb_are_drawn_in_false_colours():
    levels = np.uint8([[0, 0], [255, 0], [0, 255], [100, 100], [255, 255]])
    colours = [[0, 0, 0], [255, 0, 0], [0, 255, 255], [100] * 3, [255] * 3]
    np.testing.assert_array_equal(np.asarray(to_image(levels[None]))[0], colours)
    for channels in (4, 5):
        same = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], channels, -1)
        np.testing.assert_array_equal(to_image(same), np.repeat(same[..., :1], 3, -1))
        colours = channel_colours(channels)
        assert len(np.unique(colours.round(6), axis=0)) == channels
    np.testing.assert_array_equal(channel_colours(3), np.eye(3))
    assert image_grid(random_images(2, 8, 8, 5)).mode == "RGB"


def test_a_grid_needs_at_least_one_column():
    with pytest.raises(ValueError, match="columns=0"):
        image_grid(random_images(1, 8, 8, 1), columns=0)


def test_strip_has_one_row_per_sample_and_one_column_per_stage():
    states = random_images(4, 3, 48, 48, 1)
    strip = np.asarray(image_grids.chain_strip(states))
    assert strip.shape == (3 * 50 + 2, 4 * 50 + 2)
    for stage in range(4):
        for sample in range(3):
            cell = strip[2 + sample * 50 : 50 + sample * 50, 2 + stage * 50 : 50 + stage * 50]
            np.testing.assert_array_equal(cell, states[stage, sample, ..., 0])


def test_png_holds_the_grid_and_npz_the_array_without_pickle(tmp_path):
    images = random_images(5, 16, 16, 3)
    folder = tmp_path / "new" / "folder"
    save_images(images, folder / "x.PNG")
    save_images(images, folder / "x.npz")
    np.testing.assert_array_equal(load(folder / "x.PNG"), np.asarray(image_grid(images)))
    with np.load(folder / "x.npz", allow_pickle=False) as archive:
        assert list(archive) == ["images"]
        assert archive["images"].dtype == np.uint8
        np.testing.assert_array_equal(archive["images"], images)
    assert files(folder) == ["x.PNG", "x.npz"]


@pytest.mark.parametrize("name", ["samples", "made.before"])
def test_a_directory_gets_each_image_at_native_size(tmp_path, name):
    (tmp_path / "made.before").mkdir()
    images = random_images(3, 8, 8, 1)
    save_images(images, str(tmp_path / name))
    assert files(tmp_path / name) == ["00000.png", "00001.png", "00002.png"]
    for i, image in enumerate(images):
        np.testing.assert_array_equal(load(tmp_path / name / f"{i:05d}.png"), image[..., 0])


def test_check_output_and_save_images_reject_the_same_paths(tmp_path):
    (tmp_path / "file").touch()
    wrong = {
        "x.jpg": r"\.png \(a grid\) or \.npz",
        "file": "not a directory",
        "file/x.png": "file' is a file: choose",
    }
    for name, message in wrong.items():
        for function in (check_output, lambda path: save_images(random_images(1, 8, 8, 1), path)):
            with pytest.raises(ValueError, match=message):
                function(tmp_path / name)
    for name in ("x.png", "x.npz", "folder", "deep/er/x.png", ""):
        check_output(tmp_path / name)
    assert files(tmp_path) == ["file"]


def test_a_chain_replaces_no_other_output(tmp_path):
    check_paths([tmp_path / "y.png", tmp_path / "x_chain.png"], chain=True)
    with pytest.raises(ValueError, match=r"x_chain.png' is written besides the images"):
        check_paths([tmp_path / "x.png", tmp_path / "x_chain.png"], chain=True)


def test_old_and_new_samples_do_not_mix_in_a_directory(tmp_path):
    save_images(random_images(3, 8, 8, 1), tmp_path)
    save_images(random_images(3, 8, 8, 1), tmp_path)
    with pytest.raises(ValueError, match="than the 2 to be written"):
        check_output(tmp_path, num_images=2)
    with pytest.raises(ValueError, match="than the 2 to be written"):
        save_images(random_images(2, 8, 8, 1), tmp_path)


@pytest.mark.parametrize(("frames", "channels"), [(4, 1), (4, 3), (1, 3)])
def test_gif_shows_every_state_and_holds_the_last(tmp_path, frames, channels):
    shades = np.arange(frames, dtype=np.uint8) * 60
    states = np.broadcast_to(shades[:, None, None, None, None], (frames, 2, 48, 48, channels))
    image_grids.save_gif(states, tmp_path / "x.gif", milliseconds=50)
    with Image.open(tmp_path / "x.gif") as gif:
        assert gif.n_frames == frames
        assert gif.info["loop"] == 0
        for i in range(frames):
            gif.seek(i)
            assert gif.size == (102, 52)
            assert gif.info["duration"] == (2000 if i == frames - 1 else 50)
            assert gif.convert("RGB").getpixel((30, 30)) == (shades[i],) * 3
