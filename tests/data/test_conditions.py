"""Conditions of images: where they come from, their scale, and errors of one line."""

import dataclasses
import io
import typing

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.refusals import assert_refused
from PIL import Image

from ddpm_jax.data import ConditionKind, loading
from ddpm_jax.data.arrays import Arrays
from ddpm_jax.data.batches import batch_at
from ddpm_jax.data.conditions import (
    KINDS,
    load_conditioned,
    with_condition,
    with_condition_values,
)
from ddpm_jax.data.digits import Digits
from ddpm_jax.data.huggingface import HuggingFace, choose_columns
from ddpm_jax.data.loading import InMemory, Rows
from ddpm_jax.data.values import LEVELS, scaled_values

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (20, 4, 6, 2), dtype=np.uint8)
VECTORS = RNG.normal((5.0, -300.0, 0.0), (2.0, 40.0, 0.01), (20, 3))


def png(level) -> bytes:
    file = io.BytesIO()
    Image.new("L", (4, 4), level).save(file, "PNG")
    return file.getvalue()


def save(path, images=IMAGES, **others):
    np.savez(path, images=images, **others)
    return path


def load(path, condition="vector", **options):
    source = Arrays(path=str(path), condition=condition, **options)
    return load_conditioned(source, (4, 6), 2)


def every(images, part="vector"):
    return images.read(np.arange(len(images)))[part]


def assert_standardised(vectors, raw):
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, (raw - raw.mean(0)) / raw.std(0), atol=1e-5)


def test_vectors_of_an_npz_or_an_npy_are_standardised(tmp_path):
    images = load(save(tmp_path / "x.npz", conditions=VECTORS))
    assert_standardised(every(images), VECTORS)
    np.testing.assert_array_equal(every(images, "image"), IMAGES)
    np.save(tmp_path / "vectors.npy", VECTORS)
    np.save(tmp_path / "x.npy", IMAGES)
    options = {"condition_path": str(tmp_path / "vectors.npy")}
    np.testing.assert_array_equal(every(load(tmp_path / "x.npy", **options)), every(images))
    labels = np.eye(4, dtype=bool)[np.arange(20) % 4]
    several = load(save(tmp_path / "labels.npz", conditions=labels))
    assert_standardised(every(several), labels.astype(float))


def test_a_batch_has_the_vectors_of_its_images(tmp_path):
    images = load(save(tmp_path / "x.npz", conditions=VECTORS), scaling="range")
    batch = batch_at(images, seed=0, step=3, batch_size=8, flip=False)
    everything = batch_at(images, seed=0, step=0, batch_size=20)
    for image, vector in zip(batch["image"], batch["vector"], strict=True):
        row = np.argmin(np.abs(everything["image"] - image).max((1, 2, 3)))
        np.testing.assert_array_equal(everything["vector"][row], vector)


def test_without_a_condition_the_array_is_left_out(tmp_path, capsys):
    images = load(save(tmp_path / "x.npz", conditions=VECTORS), condition=None)
    assert set(images.read(np.arange(2))) == {"image"}
    assert "x.npz: conditions.\n" in capsys.readouterr().err


def test_labels_of_an_npz_may_have_names(tmp_path):
    path = save(tmp_path / "x.npz", labels=np.arange(20) % 2, classes=np.array(["cat", "dog"]))
    assert load(path, condition=None).classes == ("cat", "dog")


@pytest.mark.parametrize("on_disk", [False, True])
def test_skipped_images_take_their_vectors_along(tmp_path, monkeypatch, on_disk):
    if on_disk:
        monkeypatch.setattr(loading, "IN_MEMORY_BYTES", 0)
    images = IMAGES.astype(np.float32)
    images[4, 0, 0, 0] = np.nan
    vectors = VECTORS.copy()
    vectors[7, 1] = np.inf
    path = save(tmp_path / "x.npz", images, conditions=vectors)
    kept = np.delete(np.arange(20), [4, 7])
    loaded = load(path, max_corrupt_fraction=0.1)
    assert_standardised(every(loaded), VECTORS[kept])
    with pytest.raises(ValueError, match=r"2 of 20 images cannot be used"):
        every(load(path, max_corrupt_fraction=0.05))


def test_conditions_stay_memory_mapped_when_images_are_skipped(tmp_path):
    broken = IMAGES.astype(np.float32)
    broken[4] = np.nan
    np.save(tmp_path / "x.npy", broken)
    np.save(tmp_path / "vectors.npy", VECTORS)
    options = {"condition_path": str(tmp_path / "vectors.npy"), "max_corrupt_fraction": 0.1}
    conditions = load(tmp_path / "x.npy", **options).conditions
    assert isinstance(conditions, Rows)
    assert isinstance(conditions.array, np.memmap)
    np.testing.assert_array_equal(conditions[np.array([3, 4])], VECTORS[[3, 5]])
    assert conditions.shape == (19, 3)


def test_columns_of_a_parquet_file_are_a_vector(tmp_path):
    table = {
        "image": [png(10 * i) for i in range(6)],
        "age": [20, 31, 42, 55, 60, 71],
        "smiles": [True, False, True, True, False, False],
        "nanoseconds": [1_700_000_000_000_000_001 + 10**18 * i for i in range(6)],
        "place": [[0.5, i / 7] for i in range(5)] + [[0.25, 1.0]],
        "label": [0, 1, 0, 1, 0, 1],
    }
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    columns = ("age", "smiles", "nanoseconds", "place")
    source = HuggingFace(
        path=str(tmp_path / "x.parquet"), condition="vector", condition_columns=columns
    )
    images = load_conditioned(source, 4, 1)
    numbers = [table[column] for column in columns]
    raw = np.column_stack([np.array(each, float) for each in numbers])
    assert_standardised(every(images), raw)
    np.testing.assert_array_equal(images.labels, table["label"])


@pytest.mark.parametrize("kind", [pa.list_(pa.float64()), pa.list_(pa.float64(), 2)])
def test_a_null_list_counts_as_an_image_that_may_be_left_out(tmp_path, kind):
    lists = [[i / 5, i / 7] for i in range(4)]
    places = pa.array([None, *lists[:2], None, *lists[2:], [0.25, None]], kind)
    table = pa.table({"image": [png(10 * i) for i in range(7)], "place": places})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=3)
    source = HuggingFace(
        path=str(tmp_path / "x.parquet"), condition="vector", condition_columns=("place",)
    )
    with pytest.raises(ValueError, match=r"3 of 7 images cannot be used.* row 0 .* 2 values that"):
        load_conditioned(source, 4, 1)
    images = load_conditioned(dataclasses.replace(source, max_corrupt_fraction=0.5), 4, 1)
    np.testing.assert_array_equal(images.conditions[np.arange(4)], lists)
    np.testing.assert_array_equal(every(images, "image")[:, 0, 0, 0], [10, 20, 40, 50])


def test_brightness_is_the_mean_level(monkeypatch):
    images = load_conditioned(Digits(condition="brightness"), 8, 1)
    levels = every(images, "image").mean((1, 2, 3), keepdims=True)[:, 0, 0]
    assert_standardised(every(images), levels)
    np.testing.assert_allclose(images.condition_values.centre, levels.mean(), rtol=1e-6)
    part = images.read(np.array([5, 3]))["vector"]
    np.testing.assert_array_equal(part, every(images)[[5, 3]])


def test_conditions_of_other_images_take_the_statistics_of_training():
    images = load_conditioned(Digits(condition="brightness"), 8, 1)
    other = scaled_values("deviation", [(100.0, 50.0)], np.dtype(float))
    changed = with_condition_values(images, other)
    levels = every(images, "image").mean((1, 2, 3), keepdims=True)[:, 0, 0]
    np.testing.assert_allclose(every(changed), (levels - 100) / 50, rtol=1e-5, atol=1e-5)
    assert with_condition_values(images, None) is images
    with pytest.raises(ValueError, match="but the network was trained on levels 0 to 255: give"):
        with_condition_values(images, LEVELS)


def test_conditions_in_another_unit_than_those_of_training_are_refused(tmp_path):
    celsius = scaled_values("deviation", [(15.0, 8.0)], np.dtype(float))
    for offset, is_kelvin in ((0, False), (273.15, True)):
        path = save(tmp_path / f"{offset}.npz", conditions=RNG.normal(15 + offset, 8, (20, 1)))
        if is_kelvin:
            with pytest.raises(ValueError, match="The conditions of this data are not in the unit"):
                with_condition_values(load(path), celsius)
        else:
            assert with_condition_values(load(path), celsius).condition_values == celsius


def test_sorted_conditions_are_in_the_unit_of_training(tmp_path):
    """The first ones may be far from the mean of all."""
    rows = np.sort(RNG.lognormal(0, 2, (2000, 1)), 0)[::-1]
    images = np.zeros((2000, 4, 6, 2), np.uint8)
    trained = load(save(tmp_path / "x.npz", images, conditions=rows)).condition_values
    assert with_condition_values(load(tmp_path / "x.npz"), trained).condition_values == trained


class Unread(InMemory):
    """Images that may not be read."""

    def read(self, indices):
        raise AssertionError


def test_a_saved_scale_replaces_one_that_is_not_computed(tmp_path):
    """The second number of this split is constant, so its own deviation would be 0."""
    saved = scaled_values("deviation", [(5.0, 2.0), (-300.0, 40.0), (0.0, 0.01)], np.dtype(float))
    constant = save(tmp_path / "x.npz", conditions=VECTORS * [1, 0, 1] + [0, -260, 0])
    np.testing.assert_allclose(every(with_condition_values(load(constant), saved))[:, 1], 1)
    digits = with_condition(Digits(condition="brightness"), Unread(IMAGES))
    assert with_condition_values(digits, saved).condition_values == saved


def test_conditions_that_do_not_fit_are_refused(tmp_path):
    def npz(name, **others):
        return save(tmp_path / f"{name}.npz", **others)

    numbers = r"give numbers \(n, k\), one for each of the 20 images"
    cases = [
        (npz("none"), r"none.npz holds no conditions: give an .npz with an array `conditions`, or"),
        (npz("few", conditions=VECTORS[1:]), rf"few.npz are float64 \(19, 3\): {numbers}"),
        (npz("flat", conditions=VECTORS[:, 0]), rf"are float64 \(20,\): {numbers}"),
        (npz("empty", conditions=VECTORS[:, :0]), rf"are float64 \(20, 0\): {numbers}"),
        (npz("texts", conditions=VECTORS.astype(str)), rf"\(20, 3\): {numbers}"),
        (
            npz("constant", conditions=VECTORS * [1, 0, 1]),
            r"Number 1 of the conditions of .*constant.npz.* has the same value .*: leave it out\.",
        ),
        (
            npz("nan", conditions=np.where(np.eye(20, 3) == 1, np.nan, VECTORS)),
            r"3 of 20 images cannot be used.*nan.npz, in its condition, has 1 values that are not",
        ),
        (npz("names", classes=np.array(["a"])), "`classes` of .* is <U1 .*: give `labels`, and a"),
        (npz("few_names", labels=np.arange(20) % 2, classes=np.array(["a"])), "give `labels`, and"),
    ]
    assert_refused(lambda path: load(path).condition_values, cases)
    with pytest.raises(
        ValueError, match="Brightness and grey copies are of levels from 0 to 255, which"
    ):
        load(save(tmp_path / "x.npz", IMAGES.astype(float)), "brightness")
    with pytest.raises(ValueError, match=r"digits: .* gives no conditions: leave data.condition"):
        load_conditioned(Digits(condition="vector"), 8, 1)


def test_no_scale_is_computed_of_numbers_that_are_not_finite(tmp_path, monkeypatch):
    """Images that stay on disk are not decoded before the scale of their conditions."""
    monkeypatch.setattr(loading, "IN_MEMORY_BYTES", 0)
    vectors = np.where(np.eye(20, 3) == 1, np.nan, VECTORS)
    with pytest.raises(ValueError, match=r"big.npz\) has values that are not finite: replace them"):
        _ = load(save(tmp_path / "big.npz", conditions=vectors)).condition_values


def test_every_kind_of_conditions_has_a_row():
    assert tuple(KINDS) == typing.get_args(ConditionKind)


def test_a_path_of_conditions_needs_a_condition(tmp_path):
    with pytest.raises(ValueError, match=r"condition_path is for data\.condition vector or image"):
        Arrays(path="x.npz", condition_path="y.npy")


def test_columns_that_do_not_fit_are_refused(tmp_path):
    image = [png(i) for i in range(2)]
    table = {"image": image, "name": ["a", "b"], "list": [[1.0], [1.0, 2.0]], "age": [1, None]}
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    source = HuggingFace(
        path=str(tmp_path / "x.parquet"), condition="vector", condition_columns=("age",)
    )

    def load_columns(columns):
        load_conditioned(dataclasses.replace(source, condition_columns=columns), 4, 1)

    cases = [
        (("size",), "x.parquet has no column 'size': choose --data.condition-columns among name"),
        (
            ("name",),
            "values in column 'name' of .* are string: choose --data.condition-columns of num",
        ),
        (
            ("list",),
            "The lists in column 'list' of .* have different lengths or hold nothing: give",
        ),
        (("age",), r"1 of 2 images .* in row 1 .*, in its condition, has 1 values that are not"),
        ((), "data.condition vector and data.condition_columns go together: set both or neither"),
    ]
    assert_refused(load_columns, cases)
    images_alone = pa.schema({"image": pa.binary()})
    with pytest.raises(ValueError, match="among its other columns, of which there are none"):
        choose_columns(images_alone, "x.parquet", condition=("size",))
