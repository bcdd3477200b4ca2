"""The 1,797 handwritten digits that scikit-learn contains: 8x8, greyscale, no download."""

import dataclasses

import numpy as np
from PIL import Image

from ddpm_jax.data import DataSource, ImageSet
from ddpm_jax.data.decode import resize_image
from ddpm_jax.data.loading import InMemory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Digits(DataSource):
    """The 1,797 handwritten 8x8 digits that come with scikit-learn."""

    def describe(self) -> str:
        return "digits: 1,797 handwritten 8x8 digits that come with scikit-learn (no download)"

    def load(self, image_size: int, channels: int) -> ImageSet:
        from sklearn.datasets import load_digits

        digits = load_digits()
        # scikit-learn's levels are 0..16.
        pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)  # (n, 8, 8)
        images = [
            resize_image(Image.fromarray(image), image_size, channels, self.resize)
            for image in pixels
        ]
        return InMemory(np.stack(images), digits.target.astype(np.int32), tuple("0123456789"))
