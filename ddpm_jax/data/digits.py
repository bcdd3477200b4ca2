"""The 1,797 handwritten digits that scikit-learn contains: 8x8, greyscale, no download."""

import dataclasses
import gzip
import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

from ddpm_jax.data import DataSource, ImageSet
from ddpm_jax.data.decode import resize_image
from ddpm_jax.data.loading import InMemory
from ddpm_jax.image_size import ImageSize


@dataclasses.dataclass(frozen=True, kw_only=True)
class Digits(DataSource):
    """The 1,797 handwritten 8x8 digits that come with scikit-learn."""

    def describe(self) -> str:
        return "digits: 1,797 handwritten 8x8 digits that come with scikit-learn (no download)"

    def load(self, image_size: ImageSize, channels: int) -> ImageSet:
        levels, labels = read_levels()
        pixels = np.round(levels * (255 / 16)).astype(np.uint8)  # (n, 8, 8)
        images = [
            resize_image(Image.fromarray(image), image_size, channels, self.resize)
            for image in pixels
        ]
        return InMemory(np.stack(images), labels, tuple("0123456789"))


def read_levels() -> tuple[np.ndarray, np.ndarray]:
    """The levels 0..16 (n, 8, 8) and the labels int32 (n,) of scikit-learn's `load_digits`.

    The file is read without importing scikit-learn, which takes seconds.
    """
    package = importlib.util.find_spec("sklearn")
    assert package is not None and package.origin is not None
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    with gzip.open(path, "rt") as file:
        rows = np.loadtxt(file, delimiter=",", dtype=np.int32)  # (n, 65)
    return rows[:, :64].reshape(-1, 8, 8), rows[:, 64]
