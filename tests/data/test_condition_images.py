"""Images to concatenate: enlarged, reduced and grey copies, paired arrays, errors of one line."""

import numpy as np
import pytest
from helpers.refusals import assert_refused
from PIL import Image

from ddpm_jax.data.arrays import Arrays
from ddpm_jax.data.batches import batch_at
from ddpm_jax.data.condition_images import (
    enlarge,
    grey_copy,
    read_condition_images,
    reduced_copy,
)
from ddpm_jax.data.conditions import load_conditioned
from ddpm_jax.data.pixels import to_floats
from ddpm_jax.data.values import LEVELS, scaled_values

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 4, 8, 3), dtype=np.uint8)
FLOATS = RNG.normal(270.0, 5.0, (12, 4, 8, 1)).astype(np.float32)


def load(tmp_path, condition, images=IMAGES, conditions=None, **options):
    others = {} if conditions is None else {"conditions": conditions}
    np.savez(tmp_path / "x.npz", images=images, **others)
    source = Arrays(path=str(tmp_path / "x.npz"), condition=condition, **options)
    return load_conditioned(source, images.shape[1:3], images.shape[3])


def every(images):
    return images.read(np.arange(len(images)))["condition_image"]


@pytest.mark.parametrize(("old", "new"), [((3, 2), (12, 8)), ((5, 5), (8, 8)), ((1, 2), (4, 8))])
def test_enlarging_matches_pillow(old, new):
    small = RNG.normal(size=(*old, 1)).astype(np.float32)
    theirs = Image.fromarray(small[..., 0]).resize(new[::-1], Image.Resampling.BICUBIC)
    np.testing.assert_allclose(enlarge(small[None], new)[0, ..., 0], theirs, atol=2e-6)


def test_a_reduced_copy_is_the_enlarged_mean_of_blocks(tmp_path):
    x = to_floats(IMAGES)
    means = x.reshape(12, 2, 2, 4, 2, 3).mean((2, 4))
    np.testing.assert_allclose(reduced_copy(x, 2), enlarge(means, (4, 8)), atol=1e-6)
    images = load(tmp_path, "reduced", reduction=2)
    np.testing.assert_array_equal(every(images), reduced_copy(x, 2))
    # Reduced float images are in the unit of the images.
    floats = load(tmp_path, "reduced", FLOATS, reduction=2)
    assert floats.condition_values == floats.values
    assert np.abs(every(floats)).max() < 1.3


def test_a_condition_does_not_depend_on_the_batch_or_its_side(tmp_path):
    images = load(tmp_path, "reduced", reduction=4)
    part = images.read(np.array([7, 2]))["condition_image"]
    np.testing.assert_array_equal(part, every(images)[[7, 2]])
    batch = batch_at(images, 0, 5, 12, flip=True)
    plain = batch_at(images, 0, 5, 12)
    flipped = (batch["image"] != plain["image"]).any((1, 2, 3))
    assert 0 < flipped.sum() < 12
    expected = reduced_copy(batch["image"], 4)
    np.testing.assert_allclose(batch["condition_image"], expected, atol=1e-5)


def test_a_grey_copy_has_the_levels_of_pillow(tmp_path):
    theirs = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in IMAGES])
    ours = every(load(tmp_path, "grey"))
    np.testing.assert_allclose(ours[..., 0], to_floats(theirs), atol=1.1 / 127.5)
    np.testing.assert_array_equal(ours, grey_copy(to_floats(IMAGES)))


def test_paired_arrays_are_scaled_and_enlarged(tmp_path):
    small = RNG.integers(0, 256, (12, 2, 4, 5), dtype=np.uint8)
    levels = load(tmp_path, "image", conditions=small)
    assert levels.condition_values == LEVELS
    np.testing.assert_array_equal(every(levels), enlarge(to_floats(small), (4, 8)))
    heights = RNG.normal(500.0, 90.0, (12, 4, 8, 1))
    floats = load(tmp_path, "image", conditions=heights)
    x = every(floats)
    np.testing.assert_allclose([x.min(), x.max()], [-1, 1], atol=1e-6)
    np.testing.assert_allclose(floats.condition_values.to_values(x), heights, rtol=1e-5)


def test_masks_of_few_levels_are_named(tmp_path, capsys):
    _ = load(tmp_path, "image", conditions=IMAGES).condition_values
    _ = load(tmp_path, "image", conditions=IMAGES > 99).condition_values
    assert "network sees" not in capsys.readouterr().err
    _ = load(tmp_path, "image", conditions=np.uint8(IMAGES > 99)).condition_values
    assert "from 0 to 1 of 0 to 255, which the network sees as -1 to" in capsys.readouterr().err


def test_given_images_are_read_in_the_unit_of_the_data():
    values = scaled_values("range", [(0.0, 10.0)], np.dtype(np.float32))
    image = np.full((2, 4, 1), 5.0)
    np.testing.assert_array_equal(
        read_condition_images(image, 1, (4, 8), values), np.zeros((1, 4, 8, 1))
    )
    several = read_condition_images(IMAGES, 3, (4, 8), LEVELS)
    np.testing.assert_array_equal(several, to_floats(IMAGES))


def test_condition_images_that_do_not_fit_are_refused(tmp_path):
    cases = [
        (IMAGES[:, :, :, :1], r"uint8 \(12, 4, 8, 1\), but the network takes 3 channels of levels"),
        (IMAGES.astype(float), r"float64 \(12, 4, 8, 3\), but the network takes 3 channels of lev"),
        (IMAGES[:0], r"uint8 \(0, 4, 8, 3\), but"),
        (IMAGES[0, 0], r"uint8 \(8, 3\), but"),
        (IMAGES.repeat(2, 1).repeat(2, 2), "of 8x16 cannot be enlarged to 4x8: give that size, or"),
        (IMAGES[:, :2], "of 2x8 cannot be enlarged to 4x8"),
    ]
    assert_refused(lambda given: read_condition_images(given, 3, (4, 8), LEVELS), cases)
    values = scaled_values("range", [(0.0, 10.0)], np.dtype(np.float32))
    with pytest.raises(ValueError, match="values that are not finite"):
        read_condition_images(np.full((4, 8, 1), np.nan), 1, (4, 8), values)
    with pytest.raises(
        ValueError, match=r"are uint8 \(11, 2, 4, 3\): give images \(n, h, w, c\), one"
    ):
        load(tmp_path, "image", conditions=IMAGES[:11, :2, :4])
    with pytest.raises(ValueError, match=r"Channel 1 of the conditions of .*: leave it out\."):
        _ = load(tmp_path, "image", conditions=IMAGES * np.array([1.0, 0.0, 1.0])).condition_values
    with pytest.raises(ValueError, match="grey copies are of levels from 0 to 255, which this"):
        load(tmp_path, "grey", IMAGES.astype(float))
