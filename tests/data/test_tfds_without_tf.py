"""Prepare TFDS sets from small archives without TensorFlow or a network, and read them back.

The archives have the layout of the real ones. They are in TFDS's folder for manual downloads, or on
a local server, and their checksums are registered with TFDS.
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
from types import SimpleNamespace

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

from ddpm_jax.data import _tfds_without_tf
from ddpm_jax.data.decode import resize_image
from ddpm_jax.data.loading import InMemory
from ddpm_jax.data.tfds import Tfds

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def no_tensorflow_no_network(monkeypatch):
    """Hide TensorFlow and send all requests to a closed port. Check that no patch is left."""
    monkeypatch.setattr(_tfds_without_tf, "has_tensorflow", lambda: False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    present = "tensorflow" in sys.modules
    yield
    assert present or "tensorflow" not in sys.modules
    assert "_module" not in vars(lazy_imports_utils.tensorflow)
    assert _ImageEncoder._encode_image is not _tfds_without_tf.encode_array


def random_images(n, height, width, channels):
    return RNG.integers(0, 256, (n, height, width, channels), np.uint8)


def encode(pixels, image_format="JPEG"):
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, image_format)
    return file.getvalue()


def decode(image_bytes, size, channels=3):
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


def write_files(folder, files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def register(monkeypatch, name, files, base=None):
    """Register the checksums of `files` for a data set, at its own URLs or all at `base`."""
    cls = tensorflow_datasets.builder_cls(name)
    urls = {
        info.filename: f"{base}{info.filename}" if base else url
        for url, info in cls.url_infos.items()
    }
    infos = {}
    for file_name, content in files.items():
        checksum = hashlib.sha256(content).hexdigest()
        infos[urls[file_name]] = UrlInfo(Size(len(content)), checksum, file_name)
    monkeypatch.setattr(cls, "url_infos", infos)


def provide(monkeypatch, name, root, files):
    """Write `files` into the folder for manual downloads and register their checksums."""
    write_files(root / "downloads" / "manual", files)
    register(monkeypatch, name, files)


def pairs(images, labels):
    """The pairs (image, label) of a set, sorted, because TFDS shuffles when it prepares."""
    return sorted(
        (image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
    )


def cifar10_files():
    pixels = random_images(12, 32, 32, 3)
    labels = np.arange(12, dtype=np.uint8) % 10
    rows = [
        bytes([label]) + image.transpose(2, 0, 1).tobytes()  # (h, w, c) -> (c, h, w)
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


def test_cifar10_is_prepared_and_read(monkeypatch, tmp_path, capsys):
    files, pixels, labels = cifar10_files()
    provide(monkeypatch, "cifar10", tmp_path, files)
    train = Tfds(name="cifar10", data_dir=str(tmp_path)).load(32, 3)
    assert isinstance(train, InMemory)
    assert train.labels.dtype == np.int32
    assert pairs(train.images, train.labels) == pairs(pixels[:10], labels[:10])
    printed = capsys.readouterr()
    assert "Preparing cifar10/3.0.2" in printed.err
    assert not printed.out

    both = Tfds(name="cifar10", data_dir=str(tmp_path), split="train+test").load(32, 3)
    assert pairs(both.images, both.labels) == pairs(pixels, labels)


def mnist_files(monkeypatch):
    monkeypatch.setattr(mnist, "_TRAIN_EXAMPLES", 9)
    monkeypatch.setattr(mnist, "_TEST_EXAMPLES", 3)
    pixels = random_images(12, 28, 28, 1)
    labels = np.arange(12, dtype=np.uint8) % 10
    files = {
        "train-images-idx3-ubyte": bytes(16) + pixels[:9].tobytes(),
        "train-labels-idx1-ubyte": bytes(8) + labels[:9].tobytes(),
        "t10k-images-idx3-ubyte": bytes(16) + pixels[9:].tobytes(),
        "t10k-labels-idx1-ubyte": bytes(8) + labels[9:].tobytes(),
    }
    compressed = {f"{name}.gz": gzip.compress(content) for name, content in files.items()}
    return compressed, pixels, labels


class SilentHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    """Serve tmp_path/served from a local port; yield the address."""
    handler = functools.partial(SilentHandler, directory=tmp_path / "served")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/"
        http.shutdown()
        thread.join()


def test_mnist_is_downloaded_once(monkeypatch, tmp_path, server, capsys):
    files, pixels, labels = mnist_files(monkeypatch)
    write_files(tmp_path / "served", files)
    register(monkeypatch, "mnist", files, server)
    monkeypatch.setattr(tensorflow_datasets.builder_cls("mnist"), "URL", server)
    test = Tfds(name="mnist", data_dir=str(tmp_path / "new"), split="test").load(28, 1)
    assert pairs(test.images, test.labels) == pairs(pixels[9:], labels[9:])
    assert "MiB to download" in capsys.readouterr().err

    # The files are kept, so the set is prepared again without the server.
    shutil.rmtree(tmp_path / "new" / "mnist")
    shutil.rmtree(tmp_path / "served")
    train = Tfds(name="mnist", data_dir=str(tmp_path / "new")).load(28, 1)
    assert pairs(train.images, train.labels) == pairs(pixels[:9], labels[:9])
    assert "MiB to download" not in capsys.readouterr().err


def test_a_wrong_checksum_is_an_error_of_one_line(monkeypatch, tmp_path):
    files, _, _ = mnist_files(monkeypatch)
    provide(monkeypatch, "mnist", tmp_path, files)
    (tmp_path / "downloads" / "manual" / "train-images-idx3-ubyte.gz").write_bytes(b"truncated")
    message = r"Preparing mnist failed \(.*wrong checksum\): try again.*\Z"
    with pytest.raises(ValueError, match=message):
        Tfds(name="mnist", data_dir=str(tmp_path)).load(28, 1)


def test_fashion_mnist_is_prepared_and_read(monkeypatch, tmp_path):
    files, pixels, labels = mnist_files(monkeypatch)
    provide(monkeypatch, "fashion_mnist", tmp_path, files)
    train = Tfds(name="fashion_mnist", data_dir=str(tmp_path)).load(28, 1)
    assert pairs(train.images, train.labels) == pairs(pixels[:9], labels[:9])


def mat(**arrays):
    file = io.BytesIO()
    scipy.io.savemat(file, arrays)
    return file.getvalue()


def test_oxford_flowers102_is_prepared_and_read(monkeypatch, tmp_path):
    pixels = random_images(6, 50, 64, 3)
    jpegs = {f"jpg/image_{i + 1:05d}.jpg": encode(image) for i, image in enumerate(pixels)}
    labels = np.array([5, 102, 1, 77, 5, 9], np.uint8)
    splits = {
        "trnid": np.array([[4, 2]]),
        "valid": np.array([[1, 5]]),
        "tstid": np.array([[3, 6]]),
    }
    files = {
        "102flowers.tgz": tar(jpegs, "w:gz"),
        "imagelabels.mat": mat(labels=labels[None]),
        "setid.mat": mat(**splits),
    }
    provide(monkeypatch, "oxford_flowers102", tmp_path, files)
    split = "train+validation+test"
    every = Tfds(name="oxford_flowers102", split=split, data_dir=str(tmp_path)).load(50, 3)
    expected = [decode(jpeg, 50) for jpeg in jpegs.values()]
    assert pairs(every.images, every.labels) == pairs(expected, labels - 1.0)


def test_celeb_a_is_prepared_and_read(monkeypatch, tmp_path):
    pixels = random_images(4, 218, 178, 3)
    jpegs = {f"{i + 1:06d}.jpg": encode(image) for i, image in enumerate(pixels)}
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as out:
        for name, jpeg in jpegs.items():
            out.writestr(f"img_align_celeba/{name}", jpeg)

    def table(headings):
        head = f"{len(jpegs)}\n{' '.join(headings)}\n"
        return (head + "".join(f"{name}{' -1' * len(headings)}\n" for name in jpegs)).encode()

    partition = "".join(f"{name} {i}\n" for name, i in zip(jpegs, (0, 2, 0, 1), strict=True))
    files = {
        "img_align_celeba.zip": zipped.getvalue(),
        "list_eval_partition.txt": partition.encode(),
        "list_attr_celeba.txt": table(celeb_a.ATTR_HEADINGS),
        "list_landmarks_align_celeba.txt": table(celeb_a.LANDMARK_HEADINGS),
        "identity_CelebA.txt": "".join(f"{name} 7\n" for name in jpegs).encode(),
    }
    provide(monkeypatch, "celeb_a", tmp_path, files)
    train = Tfds(name="celeb_a", data_dir=str(tmp_path)).load(178, 3)
    expected = [decode(jpegs[name], 178) for name in ("000001.jpg", "000003.jpg")]
    assert train.labels is None
    assert pairs(train.images, [0, 0]) == pairs(expected, [0, 0])


def test_celeb_a_hq_is_prepared_from_a_manual_download(tmp_path):
    source = Tfds(name="celeb_a_hq/256", data_dir=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"put data256x256.tar into .*manual"):
        source.load(256, 3)
    pixels = random_images(3, 256, 256, 3)
    pngs = {f"data256x256/imgHQ{i:05d}.png": encode(image, "PNG") for i, image in enumerate(pixels)}
    write_files(tmp_path / "downloads" / "manual", {"data256x256.tar": tar(pngs, "w")})
    # macOS puts such files beside others on some disks.
    (tmp_path / "downloads" / "._note.INFO").write_bytes(b"\xff")
    images = source.load(256, 3)
    assert images.labels is None
    assert pairs(images.images, [0] * 3) == pairs(pixels, [0] * 3)


def test_a_hidden_file_is_no_manual_download(tmp_path):
    builder = SimpleNamespace(
        MANUAL_DOWNLOAD_INSTRUCTIONS="Register.", builder_config=None, name="by_hand"
    )
    (tmp_path / ".DS_Store").touch()
    with pytest.raises(FileNotFoundError, match=r"cannot download by_hand: put its files into"):
        _tfds_without_tf.check_manual_files(builder, tmp_path)
    (tmp_path / "images.zip").touch()
    _tfds_without_tf.check_manual_files(builder, tmp_path)


def test_a_set_that_needs_tensorflow_is_an_error(tmp_path, monkeypatch):
    needs_tensorflow = r"cifar100 .* needs TensorFlow: pip install 'ddpm_jax\[prepare\]'"
    with pytest.raises(ValueError, match=needs_tensorflow):
        Tfds(name="cifar100", data_dir=str(tmp_path)).load(32, 3)
    monkeypatch.setattr(tensorflow_datasets, "__version__", "4.10.0")
    untested = r"tested with tensorflow-datasets >=4\.9\.10,<4\.10, not 4\.10\.0"
    with pytest.raises(ValueError, match=untested):
        Tfds(name="cifar10", data_dir=str(tmp_path)).load(32, 3)


def test_an_incomplete_folder_is_an_error(tmp_path):
    (tmp_path / "cifar10" / "3.0.2").mkdir(parents=True)
    with pytest.raises(ValueError, match="not a complete data set"):
        Tfds(name="cifar10", data_dir=str(tmp_path)).load(32, 3)
