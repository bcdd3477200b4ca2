"""TFDS sets: prepared from small archives laid out like the real ones and read back, without TensorFlow or network.

The archives lie in TFDS's folder for manual downloads, or behind a local server, under checksums registered for them.
"""

import functools
import gzip
import hashlib
import io
import shutil
import sys
import tarfile
import threading
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import scipy.io
import tensorflow_datasets
from PIL import Image
from tensorflow_datasets.core.download.checksums import UrlInfo
from tensorflow_datasets.core.features.image_feature import _ImageEncoder
from tensorflow_datasets.core.units import Size
from tensorflow_datasets.core.utils import lazy_imports_utils
from tensorflow_datasets.datasets.celeb_a import celeb_a_dataset_builder as celeb_a
from tensorflow_datasets.image_classification import mnist

from ddpm_jax.data import InMemory, _tfds_without_tf
from ddpm_jax.data.decode import resize_image
from ddpm_jax.data.tfds import Tfds

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No TensorFlow before or after, and every way out of this machine leads to a closed port."""
    monkeypatch.setattr(_tfds_without_tf, "has_tensorflow", lambda: False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    present = "tensorflow" in sys.modules
    yield
    assert present or "tensorflow" not in sys.modules
    assert "_module" not in vars(lazy_imports_utils.tensorflow)
    assert _ImageEncoder._encode_image is not _tfds_without_tf.encode_array


def pictures(count, height, width, channels):
    return RNG.integers(0, 256, (count, height, width, channels), np.uint8)


def encoded(pixels, kind="JPEG"):
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, kind)
    return file.getvalue()


def decoded(image_bytes, size, channels=3):
    with Image.open(io.BytesIO(image_bytes)) as image:
        return resize_image(image, size, channels, "crop")


def tar(files, mode):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode=mode) as out:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))
    return archive.getvalue()


def place(folder, files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def register(monkeypatch, name, files, base=None):
    """Gives the data set the checksums of `files`, at its own URLs or all at `base`."""
    cls = tensorflow_datasets.builder_cls(name)
    urls = {
        info.filename: f"{base}{info.filename}" if base else url
        for url, info in cls.url_infos.items()
    }
    infos = {
        urls[n]: UrlInfo(Size(len(b)), hashlib.sha256(b).hexdigest(), n) for n, b in files.items()
    }
    monkeypatch.setattr(cls, "url_infos", infos)


def put(monkeypatch, name, root, files):
    place(root / "downloads" / "manual", files)
    register(monkeypatch, name, files)


def pairs(images, labels):
    """What a set holds, whatever its order: TFDS shuffles when it prepares."""
    return sorted(
        (image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
    )


def cifar10_files():
    pixels, labels = pictures(12, 32, 32, 3), np.arange(12, dtype=np.uint8) % 10
    rows = [
        bytes([label]) + image.transpose(2, 0, 1).tobytes()
        for label, image in zip(labels, pixels, strict=True)
    ]
    parts = {
        f"cifar-10-batches-bin/data_batch_{i + 1}.bin": b"".join(rows[2 * i : 2 * i + 2])
        for i in range(5)
    }
    names = "\n".join(f"class{i}" for i in range(10)) + "\n\n"
    rest = {
        "cifar-10-batches-bin/batches.meta.txt": names.encode(),
        "cifar-10-batches-bin/test_batch.bin": b"".join(rows[10:]),
    }
    return {"cifar-10-binary.tar.gz": tar(rest | parts, "w:gz")}, pixels, labels


def test_cifar10(monkeypatch, tmp_path, capsys):
    files, pixels, labels = cifar10_files()
    put(monkeypatch, "cifar10", tmp_path, files)
    train = Tfds(name="cifar10", data_dir=str(tmp_path)).load(32, 3)
    assert isinstance(train, InMemory) and train.labels.dtype == np.int32
    assert pairs(train.images, train.labels) == pairs(pixels[:10], labels[:10])
    printed = capsys.readouterr()
    assert "preparing cifar10/3.0.2" in printed.err
    assert not printed.out

    both = Tfds(name="cifar10", data_dir=str(tmp_path), split="train+test").load(32, 3)
    assert pairs(both.images, both.labels) == pairs(pixels, labels)


def mnist_files(monkeypatch):
    monkeypatch.setattr(mnist, "_TRAIN_EXAMPLES", 9)
    monkeypatch.setattr(mnist, "_TEST_EXAMPLES", 3)
    pixels, labels = pictures(12, 28, 28, 1), np.arange(12, dtype=np.uint8) % 10
    files = {
        "train-images-idx3-ubyte": bytes(16) + pixels[:9].tobytes(),
        "train-labels-idx1-ubyte": bytes(8) + labels[:9].tobytes(),
        "t10k-images-idx3-ubyte": bytes(16) + pixels[9:].tobytes(),
        "t10k-labels-idx1-ubyte": bytes(8) + labels[9:].tobytes(),
    }
    return (
        {f"{name}.gz": gzip.compress(content) for name, content in files.items()},
        pixels,
        labels,
    )


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    """The address of a local server of tmp_path/served."""
    handler = functools.partial(Quiet, directory=tmp_path / "served")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/"
        http.shutdown()
        thread.join()


def test_mnist_is_downloaded(monkeypatch, tmp_path, server, capsys):
    files, pixels, labels = mnist_files(monkeypatch)
    place(tmp_path / "served", files)
    register(monkeypatch, "mnist", files, server)
    monkeypatch.setattr(tensorflow_datasets.builder_cls("mnist"), "URL", server)
    test = Tfds(name="mnist", data_dir=str(tmp_path / "new"), split="test").load(28, 1)
    assert pairs(test.images, test.labels) == pairs(pixels[9:], labels[9:])
    assert "MiB to download" in capsys.readouterr().err

    shutil.rmtree(tmp_path / "new" / "mnist")  # what was downloaded is not downloaded again
    shutil.rmtree(tmp_path / "served")
    train = Tfds(name="mnist", data_dir=str(tmp_path / "new")).load(28, 1)
    assert pairs(train.images, train.labels) == pairs(pixels[:9], labels[:9])
    assert "MiB to download" not in capsys.readouterr().err


def test_a_wrong_checksum_ends_in_one_sentence(monkeypatch, tmp_path):
    files, _, _ = mnist_files(monkeypatch)
    put(monkeypatch, "mnist", tmp_path, files)
    (tmp_path / "downloads" / "manual" / "train-images-idx3-ubyte.gz").write_bytes(b"cut short")
    with pytest.raises(
        ValueError, match=r"preparing mnist failed \(.*wrong checksum\): try again.*\Z"
    ):
        Tfds(name="mnist", data_dir=str(tmp_path)).load(28, 1)


def test_fashion_mnist(monkeypatch, tmp_path):
    files, pixels, labels = mnist_files(monkeypatch)
    put(monkeypatch, "fashion_mnist", tmp_path, files)
    train = Tfds(name="fashion_mnist", data_dir=str(tmp_path)).load(28, 1)
    assert pairs(train.images, train.labels) == pairs(pixels[:9], labels[:9])


def mat(**arrays):
    file = io.BytesIO()
    scipy.io.savemat(file, arrays)
    return file.getvalue()


def test_oxford_flowers102(monkeypatch, tmp_path):
    jpegs = {
        f"jpg/image_{i + 1:05d}.jpg": encoded(image)
        for i, image in enumerate(pictures(6, 50, 64, 3))
    }
    labels = np.array([5, 102, 1, 77, 5, 9], np.uint8)
    files = {
        "102flowers.tgz": tar(jpegs, "w:gz"),
        "imagelabels.mat": mat(labels=labels[None]),
        "setid.mat": mat(
            trnid=np.array([[4, 2]]), valid=np.array([[1, 5]]), tstid=np.array([[3, 6]])
        ),
    }
    put(monkeypatch, "oxford_flowers102", tmp_path, files)
    every = Tfds(
        name="oxford_flowers102", split="train+validation+test", data_dir=str(tmp_path)
    ).load(50, 3)
    assert pairs(every.images, every.labels) == pairs(
        [decoded(jpeg, 50) for jpeg in jpegs.values()], labels - 1.0
    )


def test_celeb_a(monkeypatch, tmp_path):
    jpegs = {f"{i + 1:06d}.jpg": encoded(image) for i, image in enumerate(pictures(4, 218, 178, 3))}
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as out:
        for name, jpeg in jpegs.items():
            out.writestr(f"img_align_celeba/{name}", jpeg)

    def table(headings):
        head = f"{len(jpegs)}\n{' '.join(headings)}\n"
        return (head + "".join(f"{name}{' -1' * len(headings)}\n" for name in jpegs)).encode()

    files = {
        "img_align_celeba.zip": zipped.getvalue(),
        "list_eval_partition.txt": "".join(
            f"{n} {p}\n" for n, p in zip(jpegs, (0, 2, 0, 1), strict=True)
        ).encode(),
        "list_attr_celeba.txt": table(celeb_a.ATTR_HEADINGS),
        "list_landmarks_align_celeba.txt": table(celeb_a.LANDMARK_HEADINGS),
        "identity_CelebA.txt": "".join(f"{name} 7\n" for name in jpegs).encode(),
    }
    put(monkeypatch, "celeb_a", tmp_path, files)
    train = Tfds(name="celeb_a", data_dir=str(tmp_path)).load(178, 3)
    expected = [decoded(jpegs[name], 178) for name in ("000001.jpg", "000003.jpg")]
    assert train.labels is None and pairs(train.images, [0, 0]) == pairs(expected, [0, 0])


def test_celeb_a_hq(tmp_path):
    source = Tfds(name="celeb_a_hq/256", data_dir=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"put data256x256.tar into .*manual"):
        source.load(256, 3)
    pixels = pictures(3, 256, 256, 3)
    pngs = {
        f"data256x256/imgHQ{i:05d}.png": encoded(image, "PNG") for i, image in enumerate(pixels)
    }
    place(tmp_path / "downloads" / "manual", {"data256x256.tar": tar(pngs, "w")})
    images = source.load(256, 3)
    assert images.labels is None and pairs(images.images, [0] * 3) == pairs(pixels, [0] * 3)


def test_what_needs_tensorflow_is_refused(tmp_path, monkeypatch):
    with pytest.raises(
        ValueError, match=r"cifar100 .* needs TensorFlow: pip install 'ddpm_jax\[prepare\]'"
    ):
        Tfds(name="cifar100", data_dir=str(tmp_path)).load(32, 3)
    monkeypatch.setattr(tensorflow_datasets, "__version__", "4.10.0")
    with pytest.raises(
        ValueError, match=r"tested with tensorflow-datasets >=4\.9\.10,<4\.10, not 4\.10\.0"
    ):
        Tfds(name="cifar10", data_dir=str(tmp_path)).load(32, 3)


def test_a_half_prepared_folder_is_not_taken_for_a_data_set(tmp_path):
    (tmp_path / "cifar10" / "3.0.2").mkdir(parents=True)
    with pytest.raises(ValueError, match="not a complete data set"):
        Tfds(name="cifar10", data_dir=str(tmp_path)).load(32, 3)
