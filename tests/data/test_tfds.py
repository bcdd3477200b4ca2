"""Reading a TFDS set without TensorFlow: features, splits, labels and corrupt files."""

import functools
import io
import shutil
import socket
import sys

import numpy as np
import pytest
import tensorflow_datasets
from PIL import Image

from ddpm_jax.data import _tfds_without_tf, loading
from ddpm_jax.data import tfds as tfds_source
from ddpm_jax.data.decode import resize_image
from ddpm_jax.data.loading import InMemory, OnDisk
from ddpm_jax.data.tfds import Tfds


def pngs(n, *channels):
    """n images of noise as PNG files: `channels` is 3 for RGB, 4 for RGBA, nothing for grey."""
    files = [io.BytesIO() for _ in range(n)]
    for seed, file in enumerate(files):
        rng = np.random.default_rng([seed, *channels])
        pixels = rng.integers(0, 256, (9, 9, *channels), np.uint8)
        Image.fromarray(pixels).save(file, "PNG")
    return [file.getvalue() for file in files]


def decoded(png):
    return resize_image(Image.open(io.BytesIO(png)), 9, 3, "crop")


PNGS = {"train": [*pngs(3, 3), *pngs(2, 4), *pngs(2)], "test": pngs(3)}

KINDS = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]


class TinyPictures(tensorflow_datasets.core.GeneratorBasedBuilder):
    """Images of several modes, with features called `picture` and `kind`."""

    VERSION = tensorflow_datasets.core.Version("1.0.0")

    def _info(self):
        features = tensorflow_datasets.features
        kinds = {
            "number": np.int64,
            "picture": features.Image(),
            "kind": features.ClassLabel(names=KINDS),
            "name": features.Text(),
            "weight": np.float32,
            "box": features.BBoxFeature(),
        }
        return tensorflow_datasets.core.DatasetInfo(
            builder=self, features=features.FeaturesDict(kinds)
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(files) for split, files in PNGS.items()}

    def _generate_examples(self, files):
        for i, png in enumerate(files):
            name = f"animal {10 - i}"
            box = tensorflow_datasets.features.BBox(0.0, 0.0, 1.0, 1.0)
            labels = {"number": 2**32 + i, "kind": i, "name": name, "weight": i / 2}
            yield i, {"picture": png, "box": box, **labels}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folder of the tiny set. Check that no test has imported TensorFlow."""
    present = "tensorflow" in sys.modules
    folder = tmp_path_factory.mktemp("tfds")
    TinyPictures(data_dir=folder).download_and_prepare(file_format="array_record")
    yield folder
    assert present or "tensorflow" not in sys.modules


@pytest.fixture(scope="module")
def tiny(prepared):
    """The source of the tiny set, as a function of its other settings."""
    return functools.partial(Tfds, name="tiny_pictures", data_dir=str(prepared))


@pytest.fixture
def copied(prepared, tmp_path):
    """The source of a copy of the tiny set, and the folder of the copy, which may be damaged."""
    shutil.copytree(prepared / "tiny_pictures", tmp_path / "tiny_pictures")
    return Tfds(name="tiny_pictures", data_dir=str(tmp_path)), tmp_path / "tiny_pictures" / "1.0.0"


def test_images_of_every_mode_are_read_with_their_labels(tiny):
    images = tiny().load(9, 3)
    assert isinstance(images, InMemory)
    assert images.labels.dtype == np.int32
    assert sorted(images.labels) == list(range(7))
    assert images.classes == tuple(KINDS)
    for image, label in zip(images.images, images.labels, strict=True):
        np.testing.assert_array_equal(image, decoded(PNGS["train"][label]))


def test_the_image_feature_is_found_or_chosen(tiny):
    named = tiny(image_feature="picture").load(9, 3)
    np.testing.assert_array_equal(named.images, tiny().load(9, 3).images)
    for wrong in ("photo", "kind"):
        with pytest.raises(ValueError, match=rf"'{wrong}'.*picture \(Image\)"):
            tiny(image_feature=wrong).load(9, 3)


def test_the_label_feature_is_found_or_chosen(tiny):
    kinds = tiny().load(9, 3).labels
    named = tiny(label_feature="name").load(9, 3)
    assert named.classes == tuple(f"animal {n}" for n in range(4, 11))
    np.testing.assert_array_equal(named.labels, 6 - kinds)
    unlabeled = tiny(label_feature="").load(9, 3)
    assert unlabeled.labels is None
    assert unlabeled.classes is None


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        ("number", r"'number' of tiny_pictures cannot be class labels .* --data\.label-feature"),
        ("weight", r"'weight' of tiny_pictures cannot be class labels .* --data\.label-feature"),
        ("box", r"no labels 'box': choose --data\.label-feature among number, kind, name, weight"),
    ],
)
def test_features_that_hold_no_labels_are_an_error_of_one_line(tiny, feature, message):
    with pytest.raises(ValueError, match=message) as caught:
        tiny(label_feature=feature).load(9, 3)
    assert "\n" not in str(caught.value)


def test_a_value_that_is_not_stored_is_no_label():
    from tensorflow_datasets.proto import tf_example_pb2

    empty = tf_example_pb2.Example().features.feature["label"]
    assert tfds_source.only_value(empty) is None


def test_parts_and_sums_of_splits_are_read(tiny):
    train = tiny().load(9, 3)
    test = tiny(split="test").load(9, 3)
    np.testing.assert_array_equal(tiny(split="train[:4]").load(9, 3).images, train.images[:4])
    np.testing.assert_array_equal(tiny(split="train[2:]").load(9, 3).labels, train.labels[2:])
    both = np.concatenate([train.images, test.images])
    np.testing.assert_array_equal(tiny(split="train+test").load(9, 3).images, both)


@pytest.mark.parametrize("split", ["trian", "train[:8]", "train[3:3]", "train[", "train+valid"])
def test_the_error_for_an_unknown_split_names_the_splits(tiny, split):
    with pytest.raises(ValueError, match=r"its splits are .*train \(7 images\)") as error:
        tiny(split=split).load(9, 3)
    assert repr(split) in str(error.value)


def test_a_set_too_large_for_memory_stays_on_disk(tiny, monkeypatch):
    in_memory = tiny().load(9, 3)
    for module in (loading, tfds_source):
        monkeypatch.setattr(module, "IN_MEMORY_BYTES", 0)
    on_disk = tiny().load(9, 3)
    assert isinstance(on_disk, OnDisk)
    np.testing.assert_array_equal(on_disk.read(np.arange(7))["image"], in_memory.images)
    np.testing.assert_array_equal(on_disk.labels, in_memory.labels)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('"7"', '"8"', "holds 7 records, but its metadata says 8"),
        ('"array_record"', '"tfrecord"', "as tfrecord, not as ArrayRecord"),
    ],
)
def test_a_set_that_does_not_match_its_description_is_an_error(copied, before, after, message):
    source, folder = copied
    info = folder / "dataset_info.json"
    assert before in info.read_text()
    info.write_text(info.read_text().replace(before, after))
    with pytest.raises(ValueError, match=message):
        source.load(9, 3)


def test_a_missing_file_is_an_error(copied):
    source, folder = copied
    file = next(folder.glob("*-train.array_record*"))
    file.unlink()
    with pytest.raises(ValueError, match=f"is corrupt .*{file.name}.*: delete it") as caught:
        source.load(9, 3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cifar1", "cifar10"),
        ("celeb_a_hq/257", "celeb_a_hq/256"),
        ("mnist:9.9.9", "mnist"),
        ("xyzzy", "catalog"),
    ],
)
def test_the_error_for_an_unknown_name_suggests_another(tmp_path, name, hint):
    with pytest.raises(ValueError, match=f"TFDS has no data set '{name}': .*{hint}"):
        Tfds(name=name, data_dir=str(tmp_path)).load(8, 3)


def use_proxy(monkeypatch, port):
    """Send all requests to a local port, and fail if TFDS is asked to download.

    TFDS itself would retry for minutes.
    """
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)

    def download(*args, **options):
        raise AssertionError("TFDS was asked to download")

    monkeypatch.setattr(tensorflow_datasets.core.DatasetBuilder, "download_and_prepare", download)


def test_the_error_without_a_network_names_host_files_and_folder(tmp_path, monkeypatch):
    use_proxy(monkeypatch, 9)
    message = r"www\.cs\.toronto\.edu does not answer.*cifar-10-binary\.tar\.gz.*3\.0\.2"
    with pytest.raises(FileNotFoundError, match=message):
        Tfds(name="cifar10", data_dir=str(tmp_path)).load(32, 3)
    assert not any(tmp_path.iterdir())


def test_a_network_that_never_answers_is_an_error_too(tmp_path, monkeypatch):
    monkeypatch.setattr(_tfds_without_tf, "PROBE_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        use_proxy(monkeypatch, silent.getsockname()[1])
        with pytest.raises(FileNotFoundError, match="does not answer"):
            Tfds(name="cifar10", data_dir=str(tmp_path)).load(32, 3)
