"""The pixels themselves, in [0, 1]."""

import numpy as np

from ddpm_jax.data import ImageSet
from ddpm_jax.evaluation.features import Features


def load(images: ImageSet | None = None) -> Features:
    """Pixels in [0, 1] at the images' own size. No weights."""
    return Features("pixels", "", "none", pixels)


def pixels(images: np.ndarray) -> np.ndarray:
    """uint8 images (n, h, w, c) as rows (n, h w c) of floats in [0, 1]."""
    return images.reshape(len(images), -1).astype(np.float32) / 255
