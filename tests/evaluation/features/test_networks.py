"""The networks of features match PyTorch, whatever the batch, the devices and the channels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.features import fixture, random_images
from jax.sharding import Mesh

from ddpm_jax.devices import parallel
from ddpm_jax.evaluation.features import _networks, efficientnet, inception
from ddpm_jax.evaluation.features._networks import Layer


@pytest.mark.parametrize("module", [inception, efficientnet], ids=["inception", "efficientnet"])
def test_features_match_pytorch(module):
    """The fixture is from tests/parity/features.py; the networks are narrow, the images small."""
    name = module.__name__.rpartition(".")[2]
    arrays, expected = fixture(name)
    ours = jax.jit(module.pooled)(module.network(arrays), random_images())
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, rtol=0, atol=5e-5 * np.abs(expected).max())


def test_a_batch_norm_is_folded_into_its_convolution():
    """w = 3, mean 2, variance 0.25 - eps, gamma 5, beta 7: y = 5 (3 x - 2) / 0.5 + 7."""
    names = {"weight": 5.0, "bias": 7.0, "running_mean": 2.0, "running_var": 0.24}
    arrays = {f"norm.{name}": np.array([value], np.float32) for name, value in names.items()}
    arrays["conv.weight"] = np.full((1, 1, 1, 1), 3, np.float32)
    layer = _networks.fold(arrays, "conv", "norm", 0.01)
    np.testing.assert_allclose(layer.kernel.item(), 30, rtol=1e-6)
    np.testing.assert_allclose(layer.bias.item(), -13, rtol=1e-6)


def test_pools_do_not_count_the_padding():
    x = jnp.arange(1, 5, dtype=jnp.float32).reshape(1, 2, 2, 1)
    np.testing.assert_array_equal(_networks.average_pool(x), np.full_like(x, 2.5))
    np.testing.assert_array_equal(_networks.max_pool(-x, 1, "SAME"), np.full_like(x, -1))


def test_images_are_resized_between_the_centres_of_pixels():
    expected = [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    np.testing.assert_allclose(_networks.bilinear_matrix(2, 4), expected)
    image = jnp.array([[[[0], [100]]]], jnp.uint8)  # one row of two pixels
    resized = _networks.resize(image, _networks.bilinear_matrix, 4)
    np.testing.assert_allclose(resized[0, :, :, 0], np.tile([0, 25, 75, 100], (4, 1)), atol=1e-4)


def means_of_a_convolution(layer, images):
    return _networks.convolve(images.astype(jnp.float32), layer, 2).mean((1, 2))


def toy_features(images):
    rng = np.random.RandomState(0)
    kernel = rng.standard_normal((3, 3, 3, 5)).astype(np.float32)
    layer = Layer(kernel, np.ones((1, 1, 1, 5), np.float32))
    return _networks.map_images(means_of_a_convolution, layer, images)


def test_features_have_the_same_bits_in_any_batch_and_on_any_number_of_devices(monkeypatch):
    images = random_images(150, 8, 8)
    features = toy_features(images)
    assert features.shape == (150, 5)
    batches = [toy_features(images[start : start + 64]) for start in range(0, 150, 64)]
    np.testing.assert_array_equal(np.concatenate(batches), features)
    devices = parallel.data_mesh().devices
    assert devices.size == 8
    monkeypatch.setattr(parallel, "data_mesh", lambda: Mesh(devices[:1], (parallel.AXIS,)))
    np.testing.assert_array_equal(toy_features(images), features)


def test_grey_images_are_repeated_and_others_refused():
    images = random_images(3, 8, 8)[..., :1]
    np.testing.assert_array_equal(toy_features(images), toy_features(np.repeat(images, 3, -1)))
    with pytest.raises(ValueError, match="1 or 3 channels, not 4: use the features pixels"):
        toy_features(np.zeros((1, 8, 8, 4), np.uint8))


def test_a_file_without_the_hash_of_its_name_is_refused(tmp_path):
    path = tmp_path / "weights-2cf24dba.pth"
    path.write_bytes(b"hello")
    assert _networks.named_hash(path, path.name, "delete it") == "2cf24dba"
    path.write_bytes(b"hallo")
    with pytest.raises(ValueError, match=r"SHA-256 begins with .*: delete it\."):
        _networks.named_hash(path, path.name, "delete it")
