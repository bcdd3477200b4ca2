"""Images and masks of the command line become an edit, or an error of one line."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.cli.edit_options import EditOptions
from ddpm_jax.config import Config, Training
from ddpm_jax.data.arrays import Arrays
from ddpm_jax.data.digits import Digits
from ddpm_jax.data.values import LEVELS, scaled_values
from ddpm_jax.models.unet import UNet

CONFIG = Config(
    model=UNet(image_size=4, channels=1, widths=(8,), attention=(False,), groups=4),
    data=Digits(),
    training=Training(steps=1),
)
PIXELS = np.arange(0, 240, 15, dtype=np.uint8).reshape(4, 4)


@pytest.fixture
def files(tmp_path):
    """Paths by name: images of 4 and 12x8 px, masks of both sizes, a broken and a missing file."""
    half = np.zeros((4, 4), np.uint8)
    half[:, 2:] = 255
    images = {
        "a": PIXELS,
        "b": PIXELS.T,
        "wide": np.tile(np.repeat(np.uint8([10, 90, 170]), 4), (8, 1)),
        "mask": half,
        "wide_mask": np.tile(np.repeat(np.uint8([255, 0, 255]), 4), (8, 1)),
    }
    paths = {name: tmp_path / f"{name}.png" for name in images}
    for name, pixels in images.items():
        Image.fromarray(pixels).save(paths[name])
    paths["broken"] = tmp_path / "broken.png"
    paths["broken"].write_bytes(b"not an image")
    paths["missing"] = tmp_path / "missing.png"
    return paths


def make_edit(files, num=4, image="", mask="", **options):
    """The edit of some options. `image` and `mask` are names of `files`, separated by spaces."""
    images = tuple(files[name] for name in image.split())
    masks = tuple(files[name] for name in mask.split())
    return EditOptions(image=images, mask=masks, **options).edit(CONFIG, num)


def test_default_options_are_no_edit(files):
    assert make_edit(files) is None


FLOATS = np.random.default_rng(0).normal(size=(4, 6, 5)).astype(np.float32)
ARRAY_CONFIG = dataclasses.replace(
    CONFIG,
    model=dataclasses.replace(CONFIG.model, image_size=(4, 6), channels=5),
    data=Arrays(path="x.npz"),
)
VALUES = scaled_values("range", [(-4.0, 4.0)] * 5, FLOATS.dtype)


def test_arrays_are_read_as_the_network_takes_them(files, tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, FLOATS)
    mask = tmp_path / "mask.png"
    Image.fromarray(np.uint8([[0, 255] * 3] * 4)).save(mask)
    edit = EditOptions(image=(path,), mask=(mask,)).edit(ARRAY_CONFIG, 2, VALUES)
    np.testing.assert_allclose(edit.images[0], FLOATS / 4, rtol=1e-5)
    np.testing.assert_array_equal(edit.masks[0, 0, :, 0], [False, True] * 3)
    np.save(path, PIXELS[..., None])
    edit = EditOptions(image=(path,)).edit(CONFIG, 2)
    np.testing.assert_allclose(edit.images[0, ..., 0], PIXELS / 127.5 - 1, atol=1e-6)


def test_arrays_that_do_not_fit_are_refused(files, tmp_path):
    def fails(array, config, values, message):
        path = tmp_path / "x.npy"
        np.save(path, array)
        with pytest.raises(ValueError, match=message):
            EditOptions(image=(path,)).edit(config, 2, values)

    fails(FLOATS[:2], ARRAY_CONFIG, VALUES, "is float32 2x6x5, but the network draws 4x6x5 of fl")
    fails(FLOATS * np.nan, ARRAY_CONFIG, VALUES, "x.npy has 120 values that are not finite")
    fails(PIXELS[..., None] / 255, CONFIG, LEVELS, "is float64 4x4x1, .* levels 0 to 255: give")
    with pytest.raises(ValueError, match=r"5 channels of float32, .* give an .npy of an array \(h"):
        EditOptions(image=(files["a"],)).edit(ARRAY_CONFIG, 2, VALUES)


def test_images_are_read_as_floats_from_minus_1_to_1(files):
    edit = make_edit(files, image="a b")
    expected = np.stack([PIXELS, PIXELS.T]) / 127.5 - 1
    np.testing.assert_allclose(edit.images[..., 0], expected, atol=1e-6)
    assert edit.masks is None
    assert edit.fractions is None
    assert edit.end_images is None
    assert not edit.invert


def test_an_image_and_its_mask_are_resized_in_the_same_way(files):
    """Columns 2 to 9 of an image of 12x8 px are its middle square."""
    edit = make_edit(files, image="wide", mask="wide_mask")
    expected = np.tile([True, False, False, True], (4, 1))
    np.testing.assert_array_equal(edit.masks[0, :, :, 0], expected)
    assert edit.masks.dtype == bool
    assert np.ptp(edit.images[0, :, :, 0], axis=0).max() == 0
    assert np.all(np.diff(edit.images[0, 0, :, 0]) > 0)


def test_white_pixels_of_a_mask_are_redrawn(files):
    masks = make_edit(files, image="a", mask="mask").masks
    np.testing.assert_array_equal(masks[0, 0, :, 0], [False, False, True, True])


def test_transparent_pixels_of_a_mask_are_kept(files):
    strokes = np.full((4, 4, 4), 255, np.uint8)
    strokes[:, 2:, 3] = 0
    Image.fromarray(strokes).save(files["mask"])
    masks = make_edit(files, image="a", mask="mask").masks
    np.testing.assert_array_equal(masks[0, 0, :, 0], [True, True, False, False])


@pytest.mark.parametrize(
    ("options", "strength"),
    [
        ({"image": "a"}, 0.5),
        ({"image": "a", "strength": 0.3}, 0.3),
        ({"image": "a", "mask": "mask"}, 1.0),
        ({"image": "a", "mask": "mask", "strength": 0.7}, 0.7),
        ({"image": "a", "invert": True}, 1.0),
        ({"image": "a b", "interpolate": True}, 0.5),
        ({"interpolate": True}, 1.0),
    ],
)
def test_strength_is_the_given_one_or_a_default(files, options, strength):
    assert make_edit(files, **options).strength == strength


def test_other_options_reach_the_edit(files):
    resampled = make_edit(files, image="a", mask="mask", resample=7, jump_length=3)
    assert (resampled.repeats, resampled.jump_length) == (7, 3)
    between = make_edit(files, num=3, image="a b", interpolate=True, invert=True)
    np.testing.assert_array_equal(between.fractions, [0, 0.5, 1])
    np.testing.assert_allclose(between.images[0, ..., 0], PIXELS / 127.5 - 1, atol=1e-6)
    np.testing.assert_allclose(between.end_images[0, ..., 0], PIXELS.T / 127.5 - 1, atol=1e-6)
    assert between.invert
    assert make_edit(files, num=3, interpolate=True).images is None


def test_default_num_is_one_sample_for_each_inverted_image():
    two = (Path("a"), Path("b"))
    assert EditOptions(image=two, invert=True).default_num() == 2
    assert EditOptions(image=two).default_num() is None
    assert EditOptions(image=two, invert=True, interpolate=True).default_num() is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": "a", "strength": 0.0}, "--strength must be above 0 and at most 1, not 0.0"),
        ({"image": "a", "strength": 1.5}, "--strength must be above 0 and at most 1, not 1.5"),
        ({"strength": 0.5}, "--strength is for an image: give --image PATH too"),
        ({"mask": "mask"}, "--mask is for an image"),
        ({"invert": True}, "--invert is for an image"),
        ({"image": "a", "resample": 2}, "--resample is for a mask"),
        ({"image": "a", "mask": "mask", "jump_length": 3}, "--jump-length is for --resample: give"),
        ({"image": "a b", "num": 1}, "--image has 2 files, but --num is 1: draw at least one of"),
        ({"image": "a", "mask": "mask", "resample": 0}, "--resample must be at least 1, not 0"),
        ({"image": "a", "mask": "mask", "invert": True}, "neither --interpolate nor --invert"),
        ({"image": "a b", "mask": "mask", "interpolate": True}, "--mask goes with neither"),
        ({"image": "a", "interpolate": True}, "two images or two noises, not 1 images: give two"),
        ({"image": "a b a", "interpolate": True}, "not 3 images"),
        ({"image": "a b", "interpolate": True, "num": 1}, "needs a --num of at least 2, not 1"),
        ({"image": "a b a", "mask": "mask mask"}, "--mask has 2 files and --image 3: give one"),
        ({"image": "wide", "mask": "mask"}, "mask.png is 4x4 and the image .*wide.png 12x8"),
        ({"image": "a wide", "mask": "mask"}, "mask.png is 4x4 and the image .*wide.png 12x8"),
        ({"image": "broken"}, "Cannot read the image .*broken.png"),
        ({"image": "wide", "max_pixels": 95}, r"wide.png \(12x8 is .*\): raise --max-pixels, or"),
        ({"image": "a", "mask": "broken"}, "Cannot read the image .*broken.png"),
    ],
)
def test_invalid_options_are_errors(files, options, message):
    with pytest.raises(ValueError, match=message):
        make_edit(files, **options)


@pytest.mark.parametrize(
    ("options", "flag"),
    [({"image": "missing"}, "image"), ({"image": "a", "mask": "missing"}, "mask")],
)
def test_a_missing_file_is_named_with_its_flag(files, options, flag):
    message = f"There is no image .*missing.png: check --{flag}"
    with pytest.raises(FileNotFoundError, match=message):
        make_edit(files, **options)
