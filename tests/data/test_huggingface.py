"""Parquet files hold the images and labels that were written; every other file ends in one sentence."""

import importlib.util
import io
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ddpm_jax.data.huggingface import HuggingFace, image_source, refuse_missing

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
    pixels = images.read(np.arange(len(images)))["image"]
    assert pixels.dtype == np.uint8 and pixels.shape[1:] == (8, 8, 1)
    assert (pixels == pixels[:, :1, :1]).all()
    return pixels[:, 0, 0, 0]


def test_describe_needs_no_data():
    assert HuggingFace(path="owner/name").describe() == "huggingface: owner/name, split train"


@pytest.mark.parametrize("kind", ["struct", pa.binary(), pa.large_binary()])
def test_a_parquet_file_gives_its_images_in_order(tmp_path, kind):
    column = structs() if kind == "struct" else pa.array([png(level) for level in LEVELS], kind)
    write(tmp_path / "any.parquet", text=["a"] * 6, picture=column)
    images = load(tmp_path / "any.parquet", split="test")
    np.testing.assert_array_equal(levels(images), LEVELS)
    assert images.labels is None


@pytest.mark.parametrize("name", ["label", "labels"])
def test_integers_become_labels(tmp_path, name):
    write(
        tmp_path / "a.parquet", image=structs(), **{name: pa.array([5, 4, 3, 2, 1, 0], pa.int64())}
    )
    labels = load(tmp_path / "a.parquet").labels
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, [5, 4, 3, 2, 1, 0])


def test_texts_are_no_labels(tmp_path):
    write(tmp_path / "a.parquet", image=structs(), label=list("abcdef"))
    assert load(tmp_path / "a.parquet").labels is None


def test_the_images_are_fitted(tmp_path):
    wide = Image.new("RGBA", (20, 10), (0, 0, 0, 0))
    wide.paste((255, 0, 0, 255), (0, 0, 5, 10))
    file = io.BytesIO()
    wide.save(file, "PNG")
    write(tmp_path / "a.parquet", image=[{"bytes": file.getvalue(), "path": None}])
    assert (load(tmp_path / "a.parquet", 10, 3).images == 255).all()
    squashed = load(tmp_path / "a.parquet", 10, 3, resize="squash").images[0]
    np.testing.assert_array_equal(squashed[0, [0, -1]], [[255, 0, 0], [255, 255, 255]])


def test_of_a_folder_the_files_of_the_split_are_read_sorted(tmp_path):
    write(
        tmp_path / "data" / "train-00001-of-00002.parquet",
        image=structs(LEVELS[3:]),
        label=[3, 4, 5],
    )
    write(
        tmp_path / "data" / "train-00000-of-00002.parquet",
        image=structs(LEVELS[:3]),
        label=[0, 1, 2],
    )
    write(tmp_path / "data" / "test-00000-of-00001.parquet", image=structs([1]), label=[9])
    images = load(tmp_path)
    np.testing.assert_array_equal(levels(images), LEVELS)
    np.testing.assert_array_equal(images.labels, np.arange(6))
    np.testing.assert_array_equal(levels(load(tmp_path, split="test")), [1])
    with pytest.raises(
        FileNotFoundError,
        match=r"split 'validation' .*there are data/test-00000.*give another split",
    ):
        load(tmp_path, split="validation")


def test_files_of_no_named_split_are_train(tmp_path):
    write(tmp_path / "0001.parquet", image=structs(LEVELS[3:]))
    write(tmp_path / "0000.parquet", image=structs(LEVELS[:3]))
    np.testing.assert_array_equal(levels(load(tmp_path)), LEVELS)


def test_a_folder_without_parquet_files_points_to_the_folder_source(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there are none at all.*folder source"):
        load(tmp_path)


def test_one_of_several_image_columns_has_to_be_named(tmp_path):
    file = tmp_path / "a.parquet"
    write(file, mask=structs(LEVELS[::-1]), image=structs(), text=list("abcdef"))
    np.testing.assert_array_equal(levels(load(file, image_column="image")), LEVELS)
    with pytest.raises(
        ValueError, match=r"2 image columns \['mask', 'image'\]: name one by image_column"
    ):
        load(file)
    with pytest.raises(
        ValueError, match=r"no image column 'text': its image columns are \['mask', 'image'\]"
    ):
        load(file, image_column="text")


def path_only(path):
    write(
        path, image=[{"bytes": png(1), "path": "1.png"}, {"bytes": None, "path": "/photos/2.png"}]
    )


def two_kinds(path):
    write(path / "0.parquet", image=structs())
    write(path / "1.parquet", image=[png(1)])


@pytest.mark.parametrize(
    ("write_it", "sentence"),
    [
        (
            path_only,
            r"row 1 .*only the path '/photos/2\.png', the pixels were not embedded: write .* embedded",
        ),
        (lambda path: write(path, image=[png(1), png(2), None]), r"row 2 .* has no image: remove"),
        (
            lambda path: write(path, image=[png(1), b"<html>"]),
            r"cannot read the image in row 1 .*no format.* remove it",
        ),
        (
            lambda path: write(path, image=structs(), label=[0, 1, None, 3, None, 5]),
            r"2 rows of .* have no label: fill",
        ),
        (
            lambda path: write(path, url=["http://a"]),
            r"0 image columns.*\['url'\] hold no encoded images",
        ),
        (lambda path: write(path, image=pa.array([], pa.binary())), "has no rows"),
        (
            lambda path: path.write_bytes(b"PAR1 but not really"),
            r"cannot read .* as parquet \(.*sound file",
        ),
        (lambda path: path.write_bytes(b""), r"cannot read .* as parquet \(.*sound file"),
        (two_kinds, r"1\.parquet and .*0\.parquet have other columns or types"),
    ],
)
def test_an_unusable_file_is_refused_in_one_sentence(tmp_path, write_it, sentence):
    write_it(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=sentence) as caught:
        load(tmp_path / "a.parquet")
    assert "\n" not in str(caught.value) and "a.parquet" in str(caught.value)


@pytest.mark.parametrize(
    "path", ["gone.parquet", "./gone", "/gone/data", "~/gone", "a/b/c", "owner/gone.parquet"]
)
def test_a_path_that_cannot_be_a_hub_id_is_looked_for_on_disk_alone(path):
    with pytest.raises(
        FileNotFoundError, match=r"(gone|a/b/c).* does not exist or is locked.*: check the path"
    ):
        load(path)


def test_from_the_hub_the_path_of_a_cached_file_will_do():
    records = [{"bytes": None, "path": "/cache/1.png"}, {"bytes": png(7), "path": None}]
    refuse_missing(pa.chunked_array([records]), "owner/name", embedded=False)
    path, file = map(image_source, records)
    assert path == "/cache/1.png"
    assert file.read() == png(7)
    with pytest.raises(ValueError, match=r"row 2 .* of owner/name has no image: remove"):
        refuse_missing(
            pa.chunked_array([[*records, {"bytes": None, "path": None}]]),
            "owner/name",
            embedded=False,
        )


def test_without_datasets_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(
        sys.modules, "datasets", None
    )  # what Python itself does for a module it cannot import
    with pytest.raises(
        ValueError, match=r"owner/name is no file .*pip install 'ddpm_jax\[huggingface\]', or"
    ) as caught:
        load("owner/name")
    assert "\n" not in str(caught.value)


needs_datasets = pytest.mark.skipif(
    importlib.util.find_spec("datasets") is None, reason="datasets is an optional extra"
)


def python(code, **environment) -> str:
    """What `code` prints in an interpreter of its own, because `datasets` reads its environment when it is imported."""
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
    ("environment", "sentence"),
    [
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "does not answer: check the network"),
        ({"HF_HUB_OFFLINE": "1"}, "cannot load"),
    ],
)
def test_without_a_network_the_hub_fails_soon_and_in_one_line(tmp_path, environment, sentence):
    environment = {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), "no_proxy": "*"} | environment
    seconds, _, error = python(LOAD_FROM_HUB, **environment).strip().partition(" ")
    assert float(seconds) < 10
    assert sentence in error and "\n" not in error


READ_BY_DATASETS = """
from PIL import Image
from ddpm_jax.data.huggingface import choose_columns, encoded, hub_table
table = hub_table({path!r}, "train")
columns = choose_columns(table.schema, None, "test")
records = table[columns[0]].to_pylist()
print([Image.open(encoded(record)).getpixel((0, 0)) for record in records], *table[columns[1]].to_pylist())
"""


@needs_datasets
@pytest.mark.parametrize("layout", ["parquet", "image files"])
def test_what_datasets_loads_is_read_the_same_way(tmp_path, layout):
    if layout == "parquet":
        write(tmp_path / "set" / "train.parquet", image=structs(LEVELS[:2]), label=[0, 1])
    else:
        for folder, level in zip("ab", LEVELS[:2], strict=True):
            (tmp_path / "set" / "train" / folder).mkdir(parents=True)
            (tmp_path / "set" / "train" / folder / "0.png").write_bytes(png(level))
    code = READ_BY_DATASETS.format(path=str(tmp_path / "set"))
    assert (
        python(code, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "home")).split("\n")[-2]
        == "[10, 80] 0 1"
    )
