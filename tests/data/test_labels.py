"""Class labels from values of every type, and the names of columns that hold them."""

import numpy as np
import pyarrow as pa
import pytest

from ddpm_jax.data.labels import choose_labels, class_labels


def convert(values, kind=None):
    labels, names = class_labels(pa.chunked_array([pa.array(values, kind)]), "The values", "--set")
    assert labels.dtype == np.int32
    return list(labels), names


@pytest.mark.parametrize(
    "kind", [pa.int8(), pa.int64(), pa.uint64(), pa.float16(), pa.float32(), pa.float64()], ids=str
)
def test_whole_numbers_become_integers(kind):
    values = np.array([3, 0, 1]).astype(kind.to_pandas_dtype())
    assert convert(values, kind) == ([3, 0, 1], None)


def test_booleans_become_integers():
    assert convert([True, None, False]) == ([1, -1, 0], None)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()], ids=str)
def test_strings_are_numbered_in_natural_order(kind):
    values = ["class 10", "class 9", None, "class 10"]
    assert convert(values, kind) == ([1, 0, -1, 1], ("class 9", "class 10"))


def test_categories_are_converted_as_their_values_are():
    """Chunks may have different dictionaries, and the null of a dictionary is no category."""
    chunks = [["b", None, "a"], ["c", "b", None]]
    column = pa.chunked_array([pa.array(chunk).dictionary_encode() for chunk in chunks])
    labels, names = class_labels(column, "The values", "--set")
    assert list(labels) == [1, -1, 0, 2, 1, -1]
    assert names == ("a", "b", "c")
    numbers = pa.chunked_array([pa.array([7, None, 4]).dictionary_encode()])
    labels, names = class_labels(numbers, "The values", "--set")
    assert list(labels) == [7, -1, 4]
    assert names is None


@pytest.mark.parametrize(("values", "kind"), [([1, None], None), ([1.0, np.nan], None)])
def test_null_and_nan_are_unlabeled(values, kind):
    assert convert(values, kind) == ([1, -1], None)


def test_a_column_of_nothing_is_unlabeled():
    assert convert([None, None]) == ([-1, -1], None)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0.5, 1.0], None),
        ([np.inf, 1.0], None),
        ([2**32 + 1, 0], None),
        ([2**64 - 1], pa.uint64()),
        ([[0, 1], [1]], None),
        ([0], pa.date32()),
        ([b"a"], None),
    ],
)
def test_other_values_are_an_error_of_one_line(values, kind):
    message = r"^The values cannot be class labels \(.*\): choose others with --set, or --set ''"
    with pytest.raises(ValueError, match=message) as caught:
        convert(values, kind)
    assert "\n" not in str(caught.value)


def choose(columns, declared=(), requested=None):
    return choose_labels(requested, columns, declared, "The set", "--set")


def test_likely_labels_are_the_columns_named_so_and_then_the_declared_ones(capsys):
    assert choose(["bird", "coarse_label", "label"], ["bird", "label"]) == "label"
    printed = capsys.readouterr().err
    assert printed == (
        "The labels of The set come from 'label': choose 'coarse_label' or 'bird' with --set.\n"
    )
    assert choose(["bird", "text"], ["bird"]) == "bird"
    assert choose(["text"]) == ""
    assert not capsys.readouterr().err


def test_requested_labels_must_exist():
    assert choose(["text", "label"], requested="text") == "text"
    assert choose(["text", "label"], requested="") == ""
    with pytest.raises(
        ValueError, match=r"has no labels 'bird': choose --set among text, label\.$"
    ):
        choose(["text", "label"], requested="bird")
    with pytest.raises(ValueError, match=r"has no labels 'bird': leave out --set\.$"):
        choose([], requested="bird")
