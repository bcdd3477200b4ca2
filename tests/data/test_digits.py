"""The digits are those of scikit-learn, read without importing it."""

import numpy as np
from sklearn.datasets import load_digits

from ddpm_jax.data.digits import Digits, read_levels


def test_levels_and_labels_are_those_of_scikit_learn():
    levels, labels = read_levels()
    digits = load_digits()
    np.testing.assert_array_equal(levels, digits.images)
    np.testing.assert_array_equal(labels, digits.target)


def test_level_16_is_white():
    images = Digits().load(8, 1)
    batch = images.read(np.arange(len(images)))
    levels, labels = read_levels()
    np.testing.assert_array_equal(batch["label"], labels)
    assert set(batch["image"][levels[..., None] == 16]) == {255}
    assert set(batch["image"][levels[..., None] == 0]) == {0}
