"""Pictures that tests make, and what they find on disk."""

import numpy as np
from PIL import Image


def random_images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def load(path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def files(folder) -> list[str]:
    return sorted(file.name for file in folder.iterdir())
