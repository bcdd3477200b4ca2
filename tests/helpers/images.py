"""Images for tests, and the pictures that they find on disk."""

import numpy as np
from PIL import Image


def random_images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def load(path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def files(folder) -> list[str]:
    """The sorted names of the files in a folder."""
    return sorted(file.name for file in folder.iterdir())
