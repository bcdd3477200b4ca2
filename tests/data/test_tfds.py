"""Reading TFDS sets: features, splits, labels and damage, on a tiny set of the test's own, without TensorFlow."""

import functools
import io
import shutil
import socket
import sys

import numpy as np
import pytest
import tensorflow_datasets
from PIL import Image

import ddpm_jax.data
from ddpm_jax.data import InMemory, OnDisk, _tfds_without_tf
from ddpm_jax.data import tfds as tfds_source
from ddpm_jax.data.decode import resize_image
from ddpm_jax.data.tfds import Tfds


def pngs(count, *mode):
    """Pictures of noise, as PNG files: `mode` is (3,) for RGB, (4,) for RGBA, nothing for grey."""
    files = [io.BytesIO() for _ in range(count)]
    for seed, file in enumerate(files):
        pixels = np.random.default_rng([seed, *mode]).integers(0, 256, (9, 9, *mode), np.uint8)
        Image.fromarray(pixels).save(file, "PNG")
    return [file.getvalue() for file in files]


def decoded(png):
    return resize_image(Image.open(io.BytesIO(png)), 9, 3, "crop")


PNGS = {"train": [*pngs(3, 3), *pngs(2, 4), *pngs(2)], "test": pngs(3)}


class TinyPictures(tensorflow_datasets.core.GeneratorBasedBuilder):
    """Pictures of several modes under names of their own."""

    VERSION = tensorflow_datasets.core.Version("1.0.0")

    def _info(self):
        features = tensorflow_datasets.features
        kinds = {
            "number": np.int64,
            "picture": features.Image(),
            "kind": features.ClassLabel(num_classes=7),
        }
        return tensorflow_datasets.core.DatasetInfo(
            builder=self, features=features.FeaturesDict(kinds)
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(files) for split, files in PNGS.items()}

    def _generate_examples(self, files):
        for i, png in enumerate(files):
            yield i, {"number": i, "picture": png, "kind": i}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folder of the tiny set; nobody has imported TensorFlow when the tests are over."""
    present = "tensorflow" in sys.modules
    folder = tmp_path_factory.mktemp("tfds")
    TinyPictures(data_dir=folder).download_and_prepare(file_format="array_record")
    yield folder
    assert present or "tensorflow" not in sys.modules


@pytest.fixture(scope="module")
def tiny(prepared):
    """The source of the tiny set; its settings are arguments."""
    return functools.partial(Tfds, name="tiny_pictures", data_dir=str(prepared))


@pytest.fixture
def copied(prepared, tmp_path):
    """A source of a copy of the tiny set, and the folder of that copy, to be damaged."""
    shutil.copytree(prepared / "tiny_pictures", tmp_path / "tiny_pictures")
    return Tfds(name="tiny_pictures", data_dir=str(tmp_path)), tmp_path / "tiny_pictures" / "1.0.0"


def test_every_picture_with_its_label_whatever_its_mode(tiny):
    images = tiny().load(9, 3)
    assert isinstance(images, InMemory) and images.labels.dtype == np.int32
    assert sorted(images.labels) == list(range(7))
    for image, label in zip(images.images, images.labels, strict=True):
        np.testing.assert_array_equal(image, decoded(PNGS["train"][label]))


def test_the_image_feature_is_found_or_named(tiny):
    named = tiny(image_feature="picture").load(9, 3)
    np.testing.assert_array_equal(named.images, tiny().load(9, 3).images)
    for wrong in ("photo", "kind"):
        with pytest.raises(ValueError, match=rf"'{wrong}'.*picture \(Image\)"):
            tiny(image_feature=wrong).load(9, 3)


def test_parts_and_sums_of_splits(tiny):
    train, test = tiny().load(9, 3), tiny(split="test").load(9, 3)
    np.testing.assert_array_equal(tiny(split="train[:4]").load(9, 3).images, train.images[:4])
    np.testing.assert_array_equal(tiny(split="train[2:]").load(9, 3).labels, train.labels[2:])
    both = np.concatenate([train.images, test.images])
    np.testing.assert_array_equal(tiny(split="train+test").load(9, 3).images, both)


@pytest.mark.parametrize("split", ["trian", "train[:8]", "train[3:3]", "train[", "train+valid"])
def test_an_unknown_split_names_the_splits(tiny, split):
    with pytest.raises(ValueError, match=r"its splits are .*train \(7 images\)") as error:
        tiny(split=split).load(9, 3)
    assert repr(split) in str(error.value)


def test_what_does_not_fit_in_memory_stays_on_disk(tiny, monkeypatch):
    held = tiny().load(9, 3)
    for module in (ddpm_jax.data, tfds_source):
        monkeypatch.setattr(module, "IN_MEMORY_BYTES", 0)
    left = tiny().load(9, 3)
    assert isinstance(left, OnDisk)
    np.testing.assert_array_equal(left.read(np.arange(7))["image"], held.images)
    np.testing.assert_array_equal(left.labels, held.labels)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('"7"', '"8"', "holds 7 records where its description says 8"),
        ('"array_record"', '"tfrecord"', "as tfrecord, not as ArrayRecord"),
    ],
)
def test_a_folder_that_is_not_what_it_says(copied, before, after, message):
    source, folder = copied
    info = folder / "dataset_info.json"
    assert before in info.read_text()
    info.write_text(info.read_text().replace(before, after))
    with pytest.raises(ValueError, match=message):
        source.load(9, 3)


def test_a_lost_file_is_named(copied):
    source, folder = copied
    next(folder.glob("*-train.array_record*")).unlink()
    with pytest.raises(ValueError, match="is damaged"):
        source.load(9, 3)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("cifar1", "cifar10"),
        ("celeb_a_hq/257", "celeb_a_hq/256"),
        ("mnist:9.9.9", "mnist"),
        ("xyzzy", "catalog"),
    ],
)
def test_unknown_names(tmp_path, name, near):
    with pytest.raises(ValueError, match=f"TFDS has no data set '{name}': .*{near}"):
        Tfds(name=name, data_dir=str(tmp_path)).load(8, 3)


def use_proxy(monkeypatch, port):
    """Lead every way out of this machine to one of its own ports.

    TFDS itself, which would retry for minutes, may not be asked.
    """
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)

    def download(*args, **options):
        raise AssertionError("TFDS was asked to download")

    monkeypatch.setattr(tensorflow_datasets.core.DatasetBuilder, "download_and_prepare", download)


def test_without_a_network_the_host_the_files_and_the_folder_are_named(tmp_path, monkeypatch):
    use_proxy(monkeypatch, 9)
    with pytest.raises(
        FileNotFoundError,
        match=r"www.cs.toronto.edu does not answer.*cifar-10-binary.tar.gz.*3.0.2",
    ):
        Tfds(name="cifar10", data_dir=str(tmp_path)).load(32, 3)
    assert not any(tmp_path.iterdir())


def test_a_network_that_never_answers_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(_tfds_without_tf, "PROBE_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        use_proxy(monkeypatch, silent.getsockname()[1])
        with pytest.raises(FileNotFoundError, match="does not answer"):
            Tfds(name="cifar10", data_dir=str(tmp_path)).load(32, 3)
