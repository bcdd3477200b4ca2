"""Arrays of any type, shape and unit become images for a network, or an error of one line."""

import numpy as np
import pytest
from helpers.refusals import assert_refused

from ddpm_jax.data import loading, scaled_images
from ddpm_jax.data.array_files import open_stored
from ddpm_jax.data.arrays import Arrays
from ddpm_jax.data.batches import batch_at, batch_indices
from ddpm_jax.data.loading import InMemory, OnDisk
from ddpm_jax.data.pixels import to_floats
from ddpm_jax.data.values import LEVELS, scaled_values

SHAPE = (4, 6, 2)
RNG = np.random.default_rng(0)
FLOATS = (RNG.normal(size=(30, *SHAPE)) * [1, 50] + [0, 300]).astype(np.float32)
LEVELS_ARRAY = RNG.integers(0, 256, (30, *SHAPE), dtype=np.uint8)
LABELS = np.arange(30) % 3


def save(path, images=FLOATS, **others):
    """Write an .npz, or an .npy."""
    if path.suffix == ".npy":
        np.save(path, images)
    else:
        np.savez(path, images=images, **others)
    return path


def load(path, image_size=(4, 6), channels=2, **options):
    return Arrays(path=str(path), **options).load(image_size, channels)


def every(images):
    return images.read(np.arange(len(images)))["image"]


def test_uint8_are_levels_as_of_image_files(tmp_path):
    path = save(tmp_path / "x.npz", LEVELS_ARRAY, labels=LABELS)
    images = load(path)
    assert isinstance(images, InMemory)
    assert images.values == LEVELS
    np.testing.assert_array_equal(every(images), LEVELS_ARRAY)
    assert images.labels.dtype == np.int32
    np.testing.assert_array_equal(images.labels, LABELS)
    np.testing.assert_array_equal(every(load(save(tmp_path / "x.npy", LEVELS_ARRAY))), LEVELS_ARRAY)
    batch = batch_at(images, 0, 0, 30)["image"]
    assert set(np.unique(batch)) == set(np.unique(to_floats(LEVELS_ARRAY)))


@pytest.mark.parametrize("block_bytes", [1, 1000, 2**24])
def test_the_range_of_each_channel_is_computed(tmp_path, monkeypatch, block_bytes):
    monkeypatch.setattr(scaled_images, "BLOCK_BYTES", block_bytes)
    images = load(save(tmp_path / "x.npz", labels=LABELS))
    x = every(images)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x.min((0, 1, 2)), -1, atol=1e-6)
    np.testing.assert_allclose(x.max((0, 1, 2)), 1, atol=1e-6)
    np.testing.assert_allclose(images.values.to_values(x), FLOATS, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(images.labels, LABELS)
    rows = batch_indices(0, 0, 30, len(images))
    np.testing.assert_array_equal(batch_at(images, 0, 0, 30)["label"], LABELS[rows])


@pytest.mark.parametrize("block_bytes", [1, 1000, 2**24])
def test_the_mean_and_deviation_of_each_channel_are_computed(tmp_path, monkeypatch, block_bytes):
    monkeypatch.setattr(scaled_images, "BLOCK_BYTES", block_bytes)
    images = load(save(tmp_path / "x.npy"), scaling="deviation")
    np.testing.assert_allclose(images.values.centre, FLOATS.mean((0, 1, 2), float), rtol=1e-6)
    np.testing.assert_allclose(images.values.spread, FLOATS.std((0, 1, 2), float), rtol=1e-6)
    x = every(images)
    np.testing.assert_allclose(x.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(x.std((0, 1, 2)), 1, rtol=1e-5)


def test_numbers_far_from_0_get_mean_0_too(tmp_path):
    """Times in ms have means a million times their deviation."""
    times = 1.7e12 + 1e5 * RNG.normal(size=(30, *SHAPE))
    x = every(load(save(tmp_path / "x.npy", times), scaling="deviation"))
    np.testing.assert_allclose(x.mean((0, 1, 2)), 0, atol=1e-5)


def test_statistics_may_be_given_for_all_channels_or_for_each(tmp_path):
    path = save(tmp_path / "x.npz", np.float64([[[[0.5, 4.0]]]]))
    one = load(path, (1, 1), statistics=(0.0, 4.0))
    np.testing.assert_array_equal(every(one).ravel(), [-0.75, 1])
    each = load(path, (1, 1), statistics=(0.0, 1.0, 3.0, 7.0))
    np.testing.assert_array_equal(every(each).ravel(), [0, -0.5])
    deviation = load(path, (1, 1), scaling="deviation", statistics=(0.0, 0.5, 2.0, 1.0))
    np.testing.assert_array_equal(every(deviation).ravel(), [1, 2])


@pytest.mark.parametrize(
    ("images", "options"),
    [
        (np.uint8([0, 1, 1]), {"statistics": (0.0, 1.0)}),
        (np.array([False, True, True]), {}),
        (np.int32([-70000, 70000, 70000]), {}),
        (np.uint16([0, 65535, 65535]).astype(">u2"), {}),
    ],
)
def test_integers_and_booleans_are_scaled_and_keep_their_type(tmp_path, images, options):
    path = save(tmp_path / "x.npy", images.reshape(3, 1, 1, 1))
    loaded = load(path, 1, 1, **options)
    np.testing.assert_array_equal(every(loaded).ravel(), [-1, 1, 1])
    drawn = loaded.values.to_values(every(loaded)).ravel()
    assert drawn.dtype == images.dtype.newbyteorder("=")
    np.testing.assert_array_equal(drawn, images)


def test_a_large_npy_is_memory_mapped_and_gives_the_same_batches(tmp_path, monkeypatch):
    path = save(tmp_path / "x.npy")
    in_memory = load(path)
    monkeypatch.setattr(loading, "IN_MEMORY_BYTES", FLOATS.nbytes - 1)
    on_disk = load(path)
    assert isinstance(in_memory.stored, InMemory)
    assert isinstance(on_disk.stored, OnDisk)
    assert on_disk.values == in_memory.values
    ours, theirs = (batch_at(images, 0, 3, 8, flip=True) for images in (in_memory, on_disk))
    np.testing.assert_array_equal(ours["image"], theirs["image"])


def test_a_folder_of_npy_has_its_subfolders_as_classes(tmp_path, capsys):
    for i, name in enumerate(("b/2", "a/1", "b/10")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / name, FLOATS[i])
    (tmp_path / "a" / "readme.txt").write_text("text")
    images = load(tmp_path)
    assert images.classes == ("a", "b")
    np.testing.assert_array_equal(images.labels, [0, 1, 1])
    restored = images.values.to_values(every(images))
    np.testing.assert_allclose(restored, FLOATS[[1, 2, 0]], rtol=1e-4, atol=1e-4)
    assert "1 .txt" in capsys.readouterr().err


def test_the_first_sound_file_of_a_folder_decides_and_broken_ones_are_counted(tmp_path, capsys):
    (tmp_path / "0.npy").write_bytes(b"broken")
    (tmp_path / "1.npy").symlink_to(tmp_path / "none.npy")
    for i in (2, 3):
        np.save(tmp_path / f"{i}.npy", FLOATS[i])
    with pytest.raises(ValueError, match=r"2 of 4 images cannot be used"):
        load(tmp_path)
    assert len(load(tmp_path, max_corrupt_fraction=0.5)) == 2
    assert "There is no file" in capsys.readouterr().err


def test_a_folder_with_splits_is_refused(tmp_path):
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "0.npy", FLOATS[0])
    with pytest.raises(ValueError, match="holds the splits test, train: give one of these folders"):
        load(tmp_path)
    assert len(load(tmp_path / "train")) == 1


def test_images_of_a_folder_keep_no_file_open(tmp_path):
    """Linux allows 65,530 mapped files of a process."""
    np.save(tmp_path / "0.npy", FLOATS[0])
    image, _ = open_stored(tmp_path).read(0)
    assert image.base is None


def test_images_with_values_that_are_not_finite_are_counted_and_refused_or_left_out(
    tmp_path, capsys
):
    broken = FLOATS.copy()
    broken[3, 0, 0, 0] = np.nan
    broken[7, :, :, 1] = np.inf
    path = save(tmp_path / "x.npz", broken, labels=LABELS)
    message = r"2 of 30 images cannot be used.* image 3 \(from 0\) of .*x.npz has 1 values that are"
    with pytest.raises(ValueError, match=message):
        load(path)
    images = load(path, max_corrupt_fraction=0.1)
    kept = np.delete(np.arange(30), [3, 7])
    np.testing.assert_array_equal(images.labels, LABELS[kept])
    lows = FLOATS[kept].min((0, 1, 2))
    np.testing.assert_allclose(images.values.to_values(np.float32([[-1, -1]]))[0], lows, rtol=1e-6)
    assert "image 7 (from 0) of" in capsys.readouterr().err


def test_values_outside_of_a_given_range_are_refused(tmp_path):
    path = save(tmp_path / "x.npz", np.float32([0.5, 2]).reshape(2, 1, 1, 1))
    with pytest.raises(ValueError, match=r"1 of 2 images .* from 2 to 2, outside of --data.stat"):
        load(path, 1, 1, statistics=(0.0, 1.0))
    assert len(load(path, 1, 1, scaling="deviation", statistics=(0.0, 1.0))) == 2
    # float32(0.1) is more than 0.1.
    tenth = save(tmp_path / "tenth.npz", np.float32([0, 0.1]).reshape(2, 1, 1, 1))
    assert len(load(tenth, 1, 1, statistics=(0.0, 0.1))) == 2


def test_other_arrays_of_an_npz_are_named(tmp_path, capsys):
    """They are not read: objects would be refused."""
    load(save(tmp_path / "x.npz", captions=np.array([None])))
    assert f"Left out of {tmp_path / 'x.npz'}: captions.\n" in capsys.readouterr().err


def test_files_that_do_not_fit_are_refused(tmp_path):
    text = tmp_path / "text.npz"
    text.write_text("text")
    np.savez(tmp_path / "keys.npz", image=FLOATS, y=LABELS)
    (tmp_path / "empty").mkdir()
    cut = save(tmp_path / "cut.npy")
    cut.write_bytes(cut.read_bytes()[:-8])
    flat = tmp_path / "flat"
    flat.mkdir()
    np.save(flat / "0.npy", FLOATS[0, :, :, 0])
    several = tmp_path / "several"
    several.mkdir()
    with open(several / "0.npy", "wb") as file:
        np.savez(file, a=FLOATS, b=LABELS)
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for i, image in enumerate((FLOATS[0], FLOATS[1].astype(np.float64), FLOATS[2, :2])):
        np.save(mixed / f"{i}.npy", image)

    def npz(name, images=FLOATS, **others):
        return save(tmp_path / f"{name}.npz", images, **others)

    labels = "`labels` of .*: give an integer of 32 bits for each of the 30 images"
    cases = [
        (text, r"Cannot read .*text.npz \(.*\): give an .npz or .npy of NumPy"),
        (cut, r"Cannot read .*cut.npy"),
        (several, r"several/0.npy holds several arrays: give an .npy of one"),
        (npz("objects", np.array([[[[None]]]])), "Cannot read .*: give .* without objects"),
        (tmp_path / "keys.npz", r"holds image, y: give an array `images` \(n, h, w, c\)"),
        (npz("grey", FLOATS[..., 0]), r"is float32 \(30, 4, 6\): give floats or integers \(n, h"),
        (npz("none", FLOATS[:0]), r"is float32 \(0, 4, 6, 2\): give"),
        (npz("complex", FLOATS * 1j), r"is complex64 \(30, 4, 6, 2\): give floats or integers"),
        (npz("text_array", FLOATS.astype(str)), "give floats or integers"),
        (
            npz("shape", FLOATS[:, :2]),
            "2x6x2, but the network takes 4x6x2: set --model.image-size 2",
        ),
        (npz("few", labels=LABELS[1:]), labels),
        (npz("fractions", labels=LABELS / 2), labels),
        (npz("pairs", labels=LABELS[:, None]), labels),
        (npz("large", labels=LABELS + 2**40), labels),
        (npz("constant", FLOATS * [1, 0]), "Channel 1 of .*constant.npz has the same value in all"),
        (flat, r"flat/0.npy is float32 \(4, 6\): give floats or integers \(h, w, c\)"),
        (mixed, "2 of 3 images cannot .*/1.npy is float64 4x6x2, and the first one float32 4x6x2"),
    ]
    assert_refused(load, cases)
    with pytest.raises(FileNotFoundError, match=r"There is no file .*nowhere.npz: check the path"):
        load(tmp_path / "nowhere.npz")
    with pytest.raises(FileNotFoundError, match=r"No images under .*: give a folder of .npy files"):
        load(tmp_path / "empty")


def test_settings_that_do_not_fit_are_refused(tmp_path):
    path = save(tmp_path / "x.npz")
    cases = [
        ({"statistics": (0.0,)}, r"data.statistics must be pairs of numbers, not \(0.0,\)"),
        ({"statistics": (0.0, np.inf)}, "must be pairs of numbers"),
        ({"statistics": (1.0, 0.0)}, r"must be pairs of low and high, not \['1 0'\]"),
        ({"statistics": (1.0, 0.0), "scaling": "deviation"}, r"deviations above 0, not \['1 0'\]"),
        ({"statistics": (0.0, 1.0) * 3}, "has 3 pairs, but the images have 2 channels: give one"),
    ]
    assert_refused(lambda options: load(path, **options), cases)
    constant = save(tmp_path / "constant.npz", np.full((3, *SHAPE), 0.1))
    with pytest.raises(ValueError, match=r"Channel 0 of .* has the same value"):
        load(constant, scaling="deviation")


SAVED = scaled_values("deviation", [(0.0, 2.0), (300.0, 50.0)], np.dtype(np.float32))


def test_a_saved_scale_replaces_one_that_is_not_computed(tmp_path):
    # The second channel is constant, so its own deviation would be 0.
    constant = FLOATS * [1, 0] + np.float32([0, 350])
    save(tmp_path / "x.npz", constant)
    images = Arrays(path=str(tmp_path / "x.npz"), scaling="deviation").load_as((4, 6), 2, SAVED)
    assert images.values == SAVED
    np.testing.assert_allclose(every(images)[..., 1], 1)


def test_data_in_another_unit_than_a_saved_scale_are_refused(tmp_path):
    source = Arrays(path=str(tmp_path / "x.npz"), scaling="deviation")
    save(tmp_path / "x.npz", FLOATS - [0, 1000])
    with pytest.raises(ValueError, match="are not in the unit of those of the trained network"):
        source.load_as((4, 6), 2, SAVED)
    # Integers have another scale, which check_values refuses.
    save(tmp_path / "x.npz", np.int16(FLOATS))
    assert source.load_as((4, 6), 2, SAVED).values.dtype == "int16"
