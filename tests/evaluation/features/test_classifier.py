"""The classifier learns the reference images once, and gives the same features again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.data.digits import Digits
from ddpm_jax.data.loading import InMemory
from ddpm_jax.evaluation.features import classifier, load_features


@pytest.fixture(scope="module")
def digits():
    return Digits().load(8, 1)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty folder of caches, a narrow network, and a training of two steps."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    settings = {"STEPS": 2, "BATCH": 64, "WIDTHS": (16, 32), "STRIDES": (1, 2), "RATE": 1e-2}
    for name, value in settings.items():
        monkeypatch.setattr(classifier, name, value)
    return tmp_path / "ddpm_jax"


def test_digits_are_learnt_and_the_accuracy_is_that_of_the_held_out_images(digits, monkeypatch):
    monkeypatch.setattr(classifier, "STEPS", 100)
    layers = classifier.train(digits, 0)
    held_out = np.arange(9, len(digits), 10)
    assert not set(held_out) & set(classifier.training_rows(len(digits)))
    images = jnp.asarray(classifier.to_colour(digits.images[held_out]))
    seen = np.argmax(classifier.logits(layers, images), 1)
    right = float(np.mean(seen == digits.labels[held_out]))
    assert right > 0.7
    assert classifier.accuracy(layers, digits) == pytest.approx(right, abs=0.01)


def test_the_accuracy_of_many_images_is_that_of_some_from_all_places(digits, monkeypatch):
    """The images may be in the order of their classes."""
    monkeypatch.setattr(classifier, "MAX_HELD_OUT", 60)
    of_last_class = InMemory(digits.images, np.int32(np.arange(len(digits)) >= len(digits) / 2))
    monkeypatch.setattr(classifier, "classify", lambda layers, images: np.zeros(len(images)))
    assert 0.2 < classifier.accuracy([], of_last_class) < 0.8


def test_a_classifier_is_trained_once_per_data_set_and_seed(digits, cache, monkeypatch, capsys):
    first = classifier.load(digits)
    assert "held-out images. Its features are comparable only" in capsys.readouterr().err
    other_seed = classifier.load(digits, seed=1)
    other_labels = classifier.load(InMemory(digits.images, digits.labels[::-1]))
    assert len({first.weights, other_seed.weights, other_labels.weights}) == 3
    (path,) = cache.glob(f"classifier-{classifier.fingerprint(digits)}-0.npz")
    path.unlink()
    assert classifier.load(digits).weights == first.weights
    monkeypatch.setattr(classifier, "train", None)
    again = load_features("classifier", digits)
    assert again[:3] == ("classifier", first.weights, "none")
    features = again.apply(digits.images[:5])
    assert features.shape == (5, 32)
    np.testing.assert_array_equal(features, first.apply(digits.images[:5]))


def test_a_damaged_file_is_made_again_and_a_cache_that_is_locked_is_no_error(
    digits, cache, monkeypatch, capsys
):
    layers = classifier.init(jax.random.key(0), 10)
    monkeypatch.setattr(classifier, "train", lambda images, seed: jax.device_get(layers))
    path = cache / f"classifier-{classifier.fingerprint(digits)}-0.npz"
    cache.mkdir()
    path.write_bytes(b"damaged")
    first = classifier.load(digits)
    assert classifier.read(path) is not None
    path.unlink()
    cache.rmdir()
    cache.touch()
    assert classifier.load(digits).weights == first.weights
    assert "The classifier is not cached (" in capsys.readouterr().err


@pytest.mark.parametrize(
    "labels", [None, np.array([0, -1] * 10, np.int32), np.zeros((20, 3), np.int32)]
)
def test_images_without_labels_are_refused(labels):
    images = InMemory(np.zeros((20, 8, 8, 1), np.uint8), labels)
    with pytest.raises(ValueError, match="trained on labels, which some of the images lack"):
        classifier.load(images)
