"""Parquet files give the images and labels written to them; other files are errors of one line."""

import importlib.util
import io
import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ddpm_jax.data import check_labels
from ddpm_jax.data.huggingface import HuggingFace, image_source, rows_without_image

LEVELS = np.array([10, 80, 150, 220, 30, 100], np.uint8)


def png(level, size=(8, 8)) -> bytes:
    file = io.BytesIO()
    Image.new("L", size, int(level)).save(file, "PNG")
    return file.getvalue()


def structs(levels=LEVELS) -> pa.Array:
    """The column that `datasets` writes: struct {bytes, path}."""
    return pa.array([{"bytes": png(level), "path": f"{level}.png"} for level in levels])


def write(path, row_group_size=4, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)


def load(path, image_size=8, channels=1, **options):
    return HuggingFace(path=str(path), **options).load(image_size, channels)


def levels(images) -> np.ndarray:
    """The grey level of each image, all of which must be of one level."""
    pixels = images.read(np.arange(len(images)))["image"]
    assert pixels.dtype == np.uint8
    assert pixels.shape[1:] == (8, 8, 1)
    assert (pixels == pixels[:, :1, :1]).all()
    return pixels[:, 0, 0, 0]


def test_describe_does_not_need_the_data():
    assert HuggingFace(path="owner/name").describe() == "huggingface: owner/name, split train"


def binary(kind) -> pa.Array:
    """One PNG file per level, as an array of a binary type or a dictionary of it."""
    files = [png(level) for level in LEVELS]
    if kind == "dictionary":
        return pa.array(files).dictionary_encode()
    if kind == "fixed size":
        # PIL reads a PNG file to its end, whatever follows.
        width = max(map(len, files)) + 1
        return pa.array([file.ljust(width, b"\0") for file in files], pa.binary(width))
    return pa.array(files, kind)


BINARY = [pa.binary(), pa.large_binary(), pa.binary_view(), "dictionary", "fixed size"]


@pytest.mark.parametrize("in_struct", [False, True])
@pytest.mark.parametrize("kind", BINARY, ids=str)
def test_a_parquet_file_is_read_in_order(tmp_path, kind, in_struct):
    column = binary(kind)
    if in_struct:
        column = pa.StructArray.from_arrays([column], ["bytes"])
    # pyarrow cannot write a part of an array of views in a struct.
    rows = 6 if kind == pa.binary_view() else 4
    write(tmp_path / "any.parquet", row_group_size=rows, text=["a"] * 6, picture=column)
    images = load(tmp_path / "any.parquet", split="test")
    np.testing.assert_array_equal(levels(images), LEVELS)
    assert images.labels is None


def test_a_single_parquet_file_has_no_splits(tmp_path):
    (tmp_path / "any.parquet").touch()
    source = HuggingFace(path=str(tmp_path / "any.parquet"), split="test")
    assert not source.has_splits
    assert source.describe() == f"huggingface: {source.path}"
    assert HuggingFace(path=str(tmp_path)).has_splits


@pytest.mark.parametrize("name", ["label", "labels", "fine_label", "target"])
def test_a_column_with_the_name_of_labels_becomes_the_labels(tmp_path, name):
    column = pa.array([5, 4, 3, 2, 1, 0], pa.int64())
    write(tmp_path / "a.parquet", image=structs(), text=list("abcdef"), **{name: column})
    labels = load(tmp_path / "a.parquet").labels
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, [5, 4, 3, 2, 1, 0])


def test_strings_become_labels_and_the_names_of_their_classes(tmp_path):
    write(tmp_path / "a.parquet", image=structs(), label=["swan", None, *4 * ["crow"]])
    images = load(tmp_path / "a.parquet")
    assert list(images.labels) == [1, -1, 0, 0, 0, 0]
    assert images.classes == ("crow", "swan")


def test_a_column_that_datasets_declares_as_classes_becomes_the_labels(tmp_path):
    feature = {"names": ["crow", "swan"], "_type": "ClassLabel"}
    features = {"info": {"features": {"bird": feature, "image": {"_type": "Image"}}}}
    table = pa.table({"image": structs(), "bird": [0, 1, 0, 1, 1, 0]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, tmp_path / "a.parquet")
    images = load(tmp_path / "a.parquet")
    assert list(images.labels) == [0, 1, 0, 1, 1, 0]
    assert images.classes == ("crow", "swan")


def test_a_column_of_masks_or_one_that_does_not_exist_is_no_column_of_labels(tmp_path):
    feature = {"names": ["crow", "swan"], "_type": "ClassLabel"}
    table = pa.table({"image": structs(), "label": structs(LEVELS[::-1])})
    features = {"info": {"features": {"dropped": feature}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, tmp_path / "a.parquet")
    images = load(tmp_path / "a.parquet")
    np.testing.assert_array_equal(levels(images), LEVELS)
    assert images.labels is None


def test_the_metadata_of_other_programs_is_ignored(tmp_path):
    for text in ["", "[]", '{"info": 3}', '{"info": {"features": {"a": "b"}}}']:
        table = pa.table({"image": structs(), "a": range(6)})
        pq.write_table(table.replace_schema_metadata({"huggingface": text}), tmp_path / "a.parquet")
        assert load(tmp_path / "a.parquet").labels is None


def test_the_choice_among_several_columns_is_printed(tmp_path, capsys):
    file = tmp_path / "a.parquet"
    labels = {"coarse_label": [0] * 6, "fine_label": range(6)}
    write(file, depth=structs(LEVELS[::-1]), img=structs(), **labels)
    images = load(file)
    np.testing.assert_array_equal(levels(images), LEVELS)
    np.testing.assert_array_equal(images.labels, range(6))
    printed = capsys.readouterr().err
    assert "come from 'img': choose 'depth' with --data.image-column." in printed
    assert "come from 'fine_label': choose 'coarse_label' with --data.label-column." in printed
    assert load(file, image_column="img", label_column="coarse_label").labels.max() == 0
    assert load(file, image_column="img", label_column="").labels is None
    assert "come from" not in capsys.readouterr().err


def test_values_that_are_no_classes_are_an_error_that_names_the_setting(tmp_path):
    write(tmp_path / "a.parquet", image=structs(), label=[0, 1, 0.5, 1, 0, 1])
    message = r"column 'label' of .*a\.parquet cannot be class labels .* --data\.label-column"
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "a.parquet")
    assert load(tmp_path / "a.parquet", label_column="").labels is None


def test_images_are_resized_and_transparent_pixels_white(tmp_path):
    wide = Image.new("RGBA", (20, 10), (0, 0, 0, 0))
    wide.paste((255, 0, 0, 255), (0, 0, 5, 10))
    file = io.BytesIO()
    wide.save(file, "PNG")
    write(tmp_path / "a.parquet", image=[{"bytes": file.getvalue(), "path": None}])
    assert (load(tmp_path / "a.parquet", 10, 3).images == 255).all()
    squashed = load(tmp_path / "a.parquet", 10, 3, resize="squash").images[0]
    np.testing.assert_array_equal(squashed[0, [0, -1]], [[255, 0, 0], [255, 255, 255]])


def test_the_files_of_a_split_are_read_in_sorted_order(tmp_path):
    folder = tmp_path / "data"
    write(folder / "train-00001-of-00002.parquet", image=structs(LEVELS[3:]), label=[3, 4, 5])
    write(folder / "train-00000-of-00002.parquet", image=structs(LEVELS[:3]), label=[0, 1, 2])
    write(folder / "test-00000-of-00001.parquet", image=structs([1]), label=[9])
    images = load(tmp_path)
    np.testing.assert_array_equal(levels(images), LEVELS)
    np.testing.assert_array_equal(images.labels, np.arange(6))
    np.testing.assert_array_equal(levels(load(tmp_path, split="test")), [1])
    message = r"split 'validation' .*there are data/test-00000.*give another split"
    with pytest.raises(FileNotFoundError, match=message):
        load(tmp_path, split="validation")


def test_the_name_of_a_file_decides_on_its_split_before_those_of_its_folders(tmp_path):
    write(tmp_path / "train-test-split" / "train.parquet", image=structs(LEVELS[:1]))
    write(tmp_path / "train-test-split" / "test.parquet", image=structs(LEVELS[1:2]))
    write(tmp_path / "train_data" / "validation-0.parquet", image=structs(LEVELS[2:3]))
    write(tmp_path / "test" / "train" / "0.parquet", image=structs(LEVELS[3:4]))
    splits = {"train": [0, 3], "test": [1], "validation": [2]}
    for split, rows in splits.items():
        assert sorted(levels(load(tmp_path, split=split))) == sorted(LEVELS[rows])


def test_a_file_whose_name_has_two_splits_is_refused(tmp_path):
    write(tmp_path / "train-dev-0.parquet", image=structs())
    write(tmp_path / "test-0.parquet", image=structs([1]))
    with pytest.raises(
        ValueError, match=r"^train-dev-0\.parquet in .* may belong to dev or train: "
    ):
        load(tmp_path)
    np.testing.assert_array_equal(levels(load(tmp_path, split="test")), [1])


def test_numbered_files_are_of_the_split_before_the_number(tmp_path):
    write(tmp_path / "data" / "train-00000-of-00001.parquet", image=structs([1]))
    write(tmp_path / "data" / "train_sft-00000-of-00001.parquet", image=structs([2]))
    for split, level in (("train", 1), ("train_sft", 2)):
        np.testing.assert_array_equal(levels(load(tmp_path, split=split)), [level])
    write(tmp_path / "train.parquet", image=structs([3]))
    write(tmp_path / "train" / "00000-of-00001.parquet", image=structs([4]))
    assert sorted(levels(load(tmp_path, split="train"))) == [1, 3, 4]


def test_files_named_after_no_split_are_train(tmp_path):
    write(tmp_path / "0001.parquet", image=structs(LEVELS[3:]))
    write(tmp_path / "0000.parquet", image=structs(LEVELS[:3]))
    np.testing.assert_array_equal(levels(load(tmp_path)), LEVELS)


def test_hidden_files_and_folders_and_folders_with_the_name_of_a_file_are_skipped(tmp_path):
    write(tmp_path / "data" / "train.parquet", image=structs())
    (tmp_path / "data" / "._train.parquet").write_bytes(b"resource fork of macOS")
    write(tmp_path / ".Trash-1000" / "train.parquet", image=structs([1]))
    (tmp_path / "train.parquet").mkdir()
    np.testing.assert_array_equal(levels(load(tmp_path)), LEVELS)


def test_a_missing_file_of_a_split_is_an_error_that_names_it(tmp_path):
    write(tmp_path / "train-00000-of-00003-0a1b.parquet", image=structs())
    write(tmp_path / "train-00002-of-00003-2c3d.parquet", image=structs())
    write(tmp_path / "test-00000-of-00001.parquet", image=structs([1]))
    message = r"^train-00001-of-00003\.parquet is missing in .* \(1 of 3 files .*: add it.*\.$"
    with pytest.raises(FileNotFoundError, match=message):
        load(tmp_path)
    np.testing.assert_array_equal(levels(load(tmp_path, split="test")), [1])
    alone = tmp_path / "train-00002-of-00003-2c3d.parquet"
    np.testing.assert_array_equal(levels(load(alone)), LEVELS)


def test_a_folder_without_parquet_files_points_to_the_folder_source(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there are none at all.*folder source"):
        load(tmp_path)


def test_one_of_several_image_columns_must_be_chosen(tmp_path):
    file = tmp_path / "a.parquet"
    write(file, left=structs(LEVELS[::-1]), right=structs(), text=list("abcdef"))
    np.testing.assert_array_equal(levels(load(file, image_column="right")), LEVELS)
    several = r"2 image columns \['left', 'right'\]: choose one with --data\.image-column"
    with pytest.raises(ValueError, match=several):
        load(file)
    wrong = r"no image column 'text': its image columns are \['left', 'right'\]"
    with pytest.raises(ValueError, match=wrong):
        load(file, image_column="text")


def write_path_only(path):
    embedded = {"bytes": png(1), "path": "1.png"}
    write(path, image=[embedded, {"bytes": None, "path": "/photos/2.png"}])


def write_missing_image(path):
    write(path, image=[png(1), png(2), None])


def write_html(path):
    write(path, image=[png(1), b"<html>"])


def write_no_images(path):
    write(path, url=["http://a"])


def write_no_rows(path):
    write(path, image=pa.array([], pa.binary()))


def write_two_schemas(path):
    write(path / "0.parquet", image=structs())
    write(path / "1.parquet", image=[png(1)])


@pytest.mark.parametrize(
    ("write_file", "message"),
    [
        (write_path_only, r"Row 1 .*only the path '/photos/2\.png', no pixels: write .* embedded"),
        (write_missing_image, r"Row 2 .* has no image: remove"),
        (write_html, r"Cannot read the image in row 1 .*not in a format.* remove it\."),
        (write_no_images, r"0 image columns.*\['url'\] hold no encoded images"),
        (write_no_rows, "has no rows"),
        (lambda path: path.write_bytes(b"PAR1 but not really"), r"Cannot read .* as parquet \("),
        (lambda path: path.write_bytes(b""), r"Cannot read .* as parquet \(.*replace the file"),
        (write_two_schemas, r"1\.parquet and .*0\.parquet have different columns or types"),
    ],
)
def test_an_unusable_file_is_an_error_of_one_line(tmp_path, write_file, message):
    write_file(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path / "a.parquet")
    assert "\n" not in str(caught.value)
    assert "a.parquet" in str(caught.value)


@pytest.mark.parametrize(
    "path", ["gone.parquet", "./gone", "/gone/data", "~/gone", "a/b/c", "owner/gone.parquet"]
)
def test_a_path_that_cannot_be_a_hub_id_is_searched_on_disk_only(path):
    message = r"(gone|a/b/c).* does not exist or is locked.*: check the path"
    with pytest.raises(FileNotFoundError, match=message):
        load(path)


def test_rows_without_an_image_count_as_corrupt_images(tmp_path, capsys):
    file = tmp_path / "a.parquet"
    column = [{"bytes": png(level), "path": None} for level in LEVELS]
    column[1] = None
    column[4] = {"bytes": None, "path": "/photos/4.png"}
    write(file, image=column, label=range(6))
    images = load(file, max_corrupt_fraction=0.4)
    np.testing.assert_array_equal(levels(images), LEVELS[[0, 2, 3, 5]])
    np.testing.assert_array_equal(images.labels, [0, 2, 3, 5])
    printed = capsys.readouterr().err
    assert "Row 1 (from 0) of" in printed
    assert "holds only the path '/photos/4.png'" in printed
    with pytest.raises(ValueError, match=r"^2 of 6 images cannot be used"):
        load(file, max_corrupt_fraction=0.3)


def test_rows_without_a_label_are_unlabeled(tmp_path):
    write(tmp_path / "a.parquet", image=structs(), label=[0, 1, None, 3, -1, 5])
    images = load(tmp_path / "a.parquet")
    np.testing.assert_array_equal(images.labels, [0, 1, -1, 3, -1, 5])
    with pytest.raises(ValueError, match=r"^2 of the 6 images are unlabeled"):
        check_labels(images, 6)


def test_a_record_of_the_hub_may_hold_the_path_of_a_cached_file():
    records = [{"bytes": None, "path": "/cache/1.png"}, {"bytes": png(7), "path": None}]
    column = pa.chunked_array([[*records, {"bytes": None, "path": None}]])
    assert rows_without_image(column, paths_count=True) == {2}
    path, file = map(image_source, records)
    assert path == "/cache/1.png"
    assert file.read() == png(7)


def test_without_datasets_the_error_names_the_extra(monkeypatch):
    # Python marks a module that cannot be imported in this way.
    monkeypatch.setitem(sys.modules, "datasets", None)
    message = r"owner/name is not a local file .*pip install 'ddpm_jax\[huggingface\]',"
    with pytest.raises(ValueError, match=message) as caught:
        load("owner/name")
    assert "\n" not in str(caught.value)


needs_datasets = pytest.mark.skipif(
    importlib.util.find_spec("datasets") is None, reason="datasets is an optional extra"
)


def python(code, **environment) -> str:
    """Run `code` in a new interpreter and return what it prints.

    `datasets` reads the environment when it is imported.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


LOAD_FROM_HUB = """
import datasets, time
from ddpm_jax.data.huggingface import HuggingFace
start = time.time()
try:
    HuggingFace(path="owner/name").load(8, 1)
except ValueError as error:
    print(f"{time.time() - start} {error}")
"""


@needs_datasets
@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "does not answer: check the network"),
        ({"HF_HUB_OFFLINE": "1"}, "Cannot load"),
    ],
)
def test_without_a_network_the_hub_is_an_error_of_one_line_within_seconds(
    tmp_path, environment, message
):
    environment = {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), "no_proxy": "*"} | environment
    seconds, _, error = python(LOAD_FROM_HUB, **environment).strip().partition(" ")
    assert float(seconds) < 10
    assert message in error
    assert "\n" not in error


TEXTS = ["a red heart", "a star"]
READ_BY_DATASETS = """
from PIL import Image
from ddpm_jax.data.huggingface import choose_columns, hub_table, image_source, read_labels
for path, caption in {sets!r}:
    table = hub_table(path, "train")
    columns = choose_columns(table.schema, "test", caption=caption)
    records = table[columns[0]].to_pylist()
    levels = [Image.open(image_source(record)).getpixel((0, 0)) for record in records]
    values, classes = read_labels(table.select(columns), "test", (caption,))
    texts = None if caption is None else table[caption].to_pylist()
    print(levels, values, classes, texts)
"""


def write_set(folder, layout):
    """Write a data set of two images, `TEXTS` and the labels 0 and 1."""
    if layout == "parquet":
        columns = {"image": structs(LEVELS[:2]), "label": [0, 1], "text": TEXTS}
        write(folder / "train.parquet", **columns)
    elif layout == "classes":
        for name, level in zip("ab", LEVELS[:2], strict=True):
            (folder / "train" / name).mkdir(parents=True)
            (folder / "train" / name / "0.png").write_bytes(png(level))
    else:
        (folder / "train").mkdir(parents=True)
        lines = []
        for text, level in zip(TEXTS, LEVELS[:2], strict=True):
            (folder / "train" / f"{text}.png").write_bytes(png(level))
            lines.append(json.dumps({"file_name": f"{text}.png", "text": text}))
        (folder / "train" / "metadata.jsonl").write_text("\n".join(lines))


@needs_datasets
def test_tables_loaded_by_datasets_are_read_too(tmp_path):
    sets = {"parquet": "text", "classes": None, "captions": "text"}
    for layout in sets:
        write_set(tmp_path / layout, layout)
    by_path = [(str(tmp_path / layout), caption) for layout, caption in sets.items()]
    code = READ_BY_DATASETS.format(sets=by_path)
    printed = python(code, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "home"))
    assert printed.splitlines()[-3:] == [
        f"[10, 80] [0 1] None {TEXTS}",
        "[10, 80] [0 1] ('a', 'b') None",
        f"[10, 80] None None {TEXTS}",
    ]
