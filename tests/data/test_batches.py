"""Batches are a pure function of (seed, step); images are resized without surprises."""

import re

import numpy as np
import pytest
from helpers.refusals import assert_refused
from PIL import Image

from ddpm_jax.data import check_labels, loading
from ddpm_jax.data.batches import batch_at, batch_indices, steps_per_epoch, stream
from ddpm_jax.data.decode import resize_image
from ddpm_jax.data.loading import InMemory, OnDisk, load_or_stream
from ddpm_jax.data.pixels import to_floats


@pytest.fixture
def images() -> InMemory:
    """23 images of 4x6 pixels, no two alike and none its own mirror image, with labels."""
    pixels = np.random.default_rng(0).integers(0, 256, (23, 4, 6, 3), np.uint8)
    return InMemory(pixels, np.arange(23, dtype=np.int32))


def test_batch_indices_depend_on_seed_and_step_alone():
    forwards = [batch_indices(3, step, 8, 23) for step in range(9)]
    backwards = [batch_indices(3, step, 8, 23) for step in reversed(range(9))]
    np.testing.assert_array_equal(forwards, backwards[::-1])
    assert not np.array_equal(forwards[0], batch_indices(4, 0, 8, 23))


@pytest.mark.parametrize("batch_size", [1, 5, 23, 64])
def test_every_epoch_is_a_new_permutation_and_batches_stay_full(batch_size):
    num_images = 23
    epochs = 4
    steps = -(-num_images * epochs // batch_size)
    batches = [batch_indices(0, step, batch_size, num_images) for step in range(steps)]
    assert all(batch.shape == (batch_size,) for batch in batches)
    drawn = np.concatenate(batches)[: num_images * epochs].reshape(epochs, num_images)
    every_image = np.tile(np.arange(num_images), (epochs, 1))
    np.testing.assert_array_equal(np.sort(drawn, axis=1), every_image)
    assert len(np.unique(drawn, axis=0)) == epochs


def test_the_order_does_not_depend_on_the_batch_size():
    of_4 = np.concatenate([batch_indices(7, step, 4, 23) for step in range(15)])
    of_20 = np.concatenate([batch_indices(7, step, 20, 23) for step in range(3)])
    np.testing.assert_array_equal(of_4, of_20)


def test_steps_per_epoch_rounds_up():
    assert [steps_per_epoch(n, 8) for n in (1, 8, 9)] == [1, 1, 2]


def test_to_floats_is_exact_at_both_ends_and_inverted_by_rounding():
    levels = np.arange(256, dtype=np.uint8)
    floats = to_floats(levels)
    assert floats.dtype == np.float32
    assert floats[0] == -1.0
    assert floats[-1] == 1.0
    np.testing.assert_array_equal(np.round((floats + 1) * 127.5), levels)


def test_batch_at_returns_the_indexed_images_with_their_labels(images):
    batch = batch_at(images, seed=1, step=5, batch_size=8)
    indices = batch_indices(1, 5, 8, 23)
    np.testing.assert_array_equal(batch["label"], indices)
    np.testing.assert_array_equal(batch["image"], to_floats(images.images[indices]))


def test_a_batch_of_unlabelled_images_has_no_label(images):
    batch = batch_at(InMemory(images.images), seed=0, step=0, batch_size=4)
    assert set(batch) == {"image"}


def test_half_of_the_images_are_flipped_and_the_same_ones_each_time(images):
    steps = 50
    batch_size = 40
    flipped = np.empty((steps, batch_size), bool)
    for step in range(steps):
        plain = batch_at(images, 2, step, batch_size)["image"]
        batch = batch_at(images, 2, step, batch_size, flip=True)["image"]
        flipped[step] = (batch == plain[:, :, ::-1]).all(axis=(1, 2, 3))
        kept = (batch == plain).all(axis=(1, 2, 3))
        assert (flipped[step] ^ kept).all()
        again = batch_at(images, 2, step, batch_size, flip=True)["image"]
        np.testing.assert_array_equal(batch, again)
    assert abs(flipped.mean() - 0.5) < 4 * 0.5 / np.sqrt(flipped.size)
    assert len(np.unique(flipped, axis=0)) == steps


def assert_equal_batches(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])


@pytest.mark.parametrize("start", [0, 3])
def test_stream_yields_the_batches_of_direct_calls_in_order(images, start):
    def make_batch(step):
        return batch_at(images, 4, step, 8, flip=True) | {"step": np.int64(step)}

    batches = list(stream(make_batch, start, 9))
    assert len(batches) == 9 - start
    for step, batch in enumerate(batches, start):
        assert_equal_batches(batch, make_batch(step))


def test_stream_raises_the_error_of_make_batch():
    def make_batch(step):
        if step == 2:
            raise ValueError("The image cat.png is broken.")
        return {"image": np.zeros(1)}

    batches = stream(make_batch, 0, 4)
    next(batches)
    next(batches)
    with pytest.raises(ValueError, match=r"The image cat\.png is broken"):
        next(batches)


def test_images_on_disk_and_in_memory_give_the_same_batches(images, monkeypatch):
    arguments = (23, lambda i: images.images[i], images.labels, images.images[0].nbytes, "test")
    in_memory = load_or_stream(*arguments)
    monkeypatch.setattr(loading, "IN_MEMORY_BYTES", images.images.nbytes - 1)
    on_disk = load_or_stream(*arguments)
    assert isinstance(in_memory, InMemory)
    assert isinstance(on_disk, OnDisk)
    assert len(in_memory) == len(on_disk) == 23
    for step in range(4):
        assert_equal_batches(batch_at(in_memory, 0, step, 8), batch_at(on_disk, 0, step, 8))


def test_resize_image_crops_the_middle_square_or_squashes():
    stripes = np.repeat(np.array([10, 90, 170, 250], np.uint8), 8)
    wide = Image.fromarray(np.tile(stripes, (16, 1)))  # 32 wide, 16 high: four stripes of 8
    middle = np.tile(stripes[8:24], (16, 1))
    np.testing.assert_array_equal(resize_image(wide, 16, 1, "crop")[:, :, 0], middle)
    squashed = resize_image(wide, 16, 1, "squash")[8, :, 0]
    np.testing.assert_array_equal(squashed[[0, 5, 10, 15]], [10, 90, 170, 250])
    tall = wide.transpose(Image.Transpose.ROTATE_270)
    np.testing.assert_array_equal(resize_image(tall, 16, 1, "crop")[:, :, 0], middle.T)


def test_resize_image_keeps_as_much_as_has_the_new_aspect_ratio():
    stripes = np.repeat(np.array([10, 90, 170, 250], np.uint8), 8)
    wide = Image.fromarray(np.tile(stripes, (16, 1)))  # 32 wide, 16 high: four stripes of 8
    middle = np.tile(stripes, (8, 1))
    np.testing.assert_array_equal(resize_image(wide, (8, 32), 1, "crop")[:, :, 0], middle)
    # A crop of 8 columns and all rows.
    narrow = np.tile(stripes[12:20], (16, 1))
    np.testing.assert_array_equal(resize_image(wide, (16, 8), 1, "crop")[:, :, 0], narrow)
    squashed = resize_image(wide, (16, 8), 1, "squash")[:, :, 0]
    np.testing.assert_array_equal(np.argsort(squashed[0]), np.arange(8))
    line = Image.fromarray(np.uint8([[7] * 99]))
    np.testing.assert_array_equal(resize_image(line, (9, 2), 1, "crop"), np.full((9, 2, 1), 7))


def test_resize_image_averages_when_it_shrinks():
    checkers = np.indices((64, 64)).sum(0) % 2 * np.uint8(200)
    image = Image.fromarray(checkers.astype(np.uint8))
    np.testing.assert_allclose(resize_image(image, 8, 1, "crop"), 100, atol=2)


@pytest.mark.parametrize(("channels", "expected"), [(1, [[76]]), (3, [[255, 0, 0]])])
def test_resize_image_returns_grey_or_rgb(channels, expected):
    resized = resize_image(Image.new("RGB", (9, 5), "red"), 4, channels, "crop")
    assert resized.shape == (4, 4, channels)
    assert resized.dtype == np.uint8
    np.testing.assert_array_equal(np.unique(resized.reshape(16, channels), axis=0), expected)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_resize_image_scales_16_bit_grey_without_clipping(dtype):
    deep = np.linspace(0, 65535, 256).astype(dtype).reshape(16, 16)
    resized = resize_image(Image.fromarray(deep), 16, 1, "crop")
    np.testing.assert_array_equal(resized.ravel(), np.arange(256))


@pytest.mark.parametrize(
    "pixels", [np.full((4, 4), 0.5, np.float32), np.full((4, 4), -1, np.int32)]
)
def test_resize_image_rejects_pixels_of_unknown_range(pixels):
    with pytest.raises(ValueError, match="not of 8 or 16 bits"):
        resize_image(Image.fromarray(pixels), 4, 1, "crop")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "for 3 classes, but this data has no labels: leave num_classes out, or"),
        ([0, 1, 3], "go from 0 to 3, outside the network's classes 0..2: set num_classes to 4."),
        ([-1, 0, -1], "2 of the 3 images are unlabeled (their label is -1 or missing): choose"),
        ([-1, -1, -1], "3 of the 3 images are unlabeled"),
        ([-5, 0, 1], "go from -5 to 1: number the classes from 0, or leave num_classes out."),
    ],
)
def test_check_labels_rejects_missing_labels_and_unknown_classes(labels, message):
    images = np.zeros((3, 2, 2, 1), np.uint8)
    check_labels(InMemory(images, np.array([0, 1, 2])), 3)
    wrong = InMemory(images, None if labels is None else np.array(labels))
    with pytest.raises(ValueError, match=re.escape(message)):
        check_labels(wrong, 3)
    # The classes of a trained network are no setting.
    with pytest.raises(ValueError, match=r": use data with the same classes\.$"):
        check_labels(wrong, 3, is_trained=True)


@pytest.mark.parametrize(
    ("names", "difference"),
    [
        (("cat", "cow", "eel"), "label 1 was dog and is cow"),
        (("cat", "dog"), "label 2 was eel and is without a name"),
        (("cat", "dog", "eel", "fox"), "label 3 was without a name and is fox"),
        (None, "label 0 was cat and is without a name"),
    ],
)
def test_check_labels_compares_classes_with_those_of_a_trained_network(names, difference):
    trained = ("cat", "dog", "eel")
    images = np.zeros((2, 2, 2, 1), np.uint8)
    check_labels(InMemory(images, np.array([0, 1]), trained), 3, trained)
    other = InMemory(images, np.array([0, 1]), names)
    check_labels(other, None, trained)
    with pytest.raises(ValueError, match=re.escape(f"({difference}): use data")):
        check_labels(other, 3, trained)


def test_a_seed_step_and_size_out_of_range_are_refused():
    cases = [
        ((-1, 0, 4, 9), r"seed must be in \[0, 2\*\*32\), not -1"),
        ((2**32, 0, 4, 9), "seed must be in"),
        ((0, -1, 4, 9), "step must be at least 0, not -1"),
        ((0, 0, 0, 9), "batch_size must be at least 1, not 0"),
        ((0, 0, 4, 0), "num_images must be at least 1, not 0"),
    ]
    assert_refused(lambda case: batch_indices(*case), cases)
