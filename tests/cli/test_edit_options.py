"""Pictures and masks of the command line: read as the data are, turned into an edit, refused where they cannot be."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.cli.edit_options import EditOptions
from ddpm_jax.config import Config, Training
from ddpm_jax.data.digits import Digits
from ddpm_jax.models.unet import UNet

CONFIG = Config(
    model=UNet(image_size=4, channels=1, widths=(8,), attention=(False,), groups=4),
    data=Digits(),
    training=Training(steps=1),
)
PIXELS = np.arange(0, 240, 15, dtype=np.uint8).reshape(4, 4)


@pytest.fixture
def files(tmp_path):
    """Paths of pictures by name: two of 4 px, one of 12x8 px, masks for both sizes, and one that is none."""
    halves = np.zeros((4, 4), np.uint8)
    halves[:, 2:] = 255
    pictures = {
        "a": PIXELS,
        "b": PIXELS.T,
        "wide": np.tile(np.repeat(np.uint8([10, 90, 170]), 4), (8, 1)),
        "mask": halves,
        "wide_mask": np.tile(np.repeat(np.uint8([255, 0, 255]), 4), (8, 1)),
    }
    paths = {name: tmp_path / f"{name}.png" for name in pictures}
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(paths[name])
    paths["broken"] = tmp_path / "broken.png"
    paths["broken"].write_bytes(b"not a picture")
    paths["missing"] = tmp_path / "missing.png"
    return paths


def edit(files, num=4, **asked):
    """The edit of what is asked, pictures and masks by name."""
    named = {
        name: tuple(files[i] for i in asked.pop(name, "").split()) for name in ("image", "mask")
    }
    return EditOptions(**named, **asked).edit(CONFIG, num)


def test_nothing_asked_is_no_edit(files):
    assert edit(files) is None


def test_pictures_are_read_as_floats_from_minus_1_to_1(files):
    found = edit(files, image="a b")
    np.testing.assert_allclose(
        found.images[..., 0], np.stack([PIXELS, PIXELS.T]) / 127.5 - 1, atol=1e-6
    )
    assert (found.masks, found.fractions, found.end_images, found.invert) == (
        None,
        None,
        None,
        False,
    )


def test_a_picture_and_its_mask_are_fitted_alike(files):
    """Of 12x8 px the middle square is taken, and shrunk: columns 2 to 9."""
    found = edit(files, image="wide", mask="wide_mask")
    np.testing.assert_array_equal(
        found.masks[0, :, :, 0], np.tile([True, False, False, True], (4, 1))
    )
    assert found.masks.dtype == bool
    assert np.ptp(found.images[0, :, :, 0], axis=0).max() == 0
    assert np.all(np.diff(found.images[0, 0, :, 0]) > 0)


def test_white_is_made_anew(files):
    np.testing.assert_array_equal(
        edit(files, image="a", mask="mask").masks[0, 0, :, 0], [False, False, True, True]
    )


@pytest.mark.parametrize(
    ("asked", "strength"),
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
def test_the_strength_is_what_is_given_or_fits(files, asked, strength):
    assert edit(files, **asked).strength == strength


def test_the_rest_is_handed_on(files):
    found = edit(files, image="a", mask="mask", resample=7, jump_length=3)
    assert (found.repeats, found.jump_length) == (7, 3)
    between = edit(files, num=3, image="a b", interpolate=True, invert=True)
    np.testing.assert_array_equal(between.fractions, [0, 0.5, 1])
    np.testing.assert_allclose(between.images[0, ..., 0], PIXELS / 127.5 - 1, atol=1e-6)
    np.testing.assert_allclose(between.end_images[0, ..., 0], PIXELS.T / 127.5 - 1, atol=1e-6)
    assert between.invert
    assert edit(files, num=3, interpolate=True).images is None


def test_one_of_each_is_drawn_where_more_would_be_the_same():
    two = (Path("a"), Path("b"))
    assert EditOptions(image=two, invert=True).default_num() == 2
    assert EditOptions(image=two).default_num() is None
    assert EditOptions(image=two, invert=True, interpolate=True).default_num() is None


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"image": "a", "strength": 0.0}, "--strength must be above 0 and at most 1, not 0.0"),
        ({"image": "a", "strength": 1.5}, "--strength must be above 0 and at most 1, not 1.5"),
        ({"strength": 0.5}, "--strength is for a picture: give --image PATH too"),
        ({"mask": "mask"}, "--mask is for a picture"),
        ({"invert": True}, "--invert is for a picture"),
        ({"image": "a", "resample": 2}, "--resample is for a mask"),
        (
            {"image": "a", "mask": "mask", "jump": 3},
            "--jump-length is for --resample: give how often too",
        ),
        ({"image": "a b", "num": 1}, "there are 2 pictures for --num 1: draw one of each"),
        ({"image": "a", "mask": "mask", "resample": 0}, "--resample must be at least 1, not 0"),
        (
            {"image": "a", "mask": "mask", "invert": True},
            "--mask goes with neither --interpolate nor --invert",
        ),
        ({"image": "a b", "mask": "mask", "interpolate": True}, "--mask goes with neither"),
        (
            {"image": "a", "interpolate": True},
            "between two pictures, or two noises, not 1 pictures",
        ),
        ({"image": "a b a", "interpolate": True}, "not 3 pictures"),
        ({"image": "a b", "interpolate": True, "num": 1}, "at least 2 pictures, not --num 1"),
        (
            {"image": "a b a", "mask": "mask mask"},
            "there are 2 masks for 3 pictures: give one, or one for each",
        ),
        ({"image": "wide", "mask": "mask"}, "mask.png is 4x4 and the picture .*wide.png 12x8"),
        ({"image": "a wide", "mask": "mask"}, "mask.png is 4x4 and the picture .*wide.png 12x8"),
        ({"image": "broken"}, "cannot read the image .*broken.png"),
        ({"image": "a", "mask": "broken"}, "cannot read the image .*broken.png"),
    ],
)
def test_what_cannot_be_is_refused(files, asked, message):
    with pytest.raises(ValueError, match=message):
        edit(files, **asked)


@pytest.mark.parametrize(
    ("asked", "flag"),
    [({"image": "missing"}, "image"), ({"image": "a", "mask": "missing"}, "mask")],
)
def test_a_missing_picture_is_named_with_its_flag(files, asked, flag):
    with pytest.raises(
        FileNotFoundError, match=f"there is no picture .*missing.png: check --{flag}"
    ):
        edit(files, **asked)
