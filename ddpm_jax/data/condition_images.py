"""Images to concatenate to the input of a network: enlarged, reduced and grey copies."""

from __future__ import annotations

import functools

import numpy as np

from ddpm_jax.data.values import LEVELS, Levels
from ddpm_jax.errors import check
from ddpm_jax.image_size import ImageSize, sides

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of red, green and blue in a grey image (Rec. 601), as Pillow has them."""


def enlarge(images: np.ndarray, image_size: ImageSize) -> np.ndarray:
    """Enlarge images (n, h, w, c) by the cubic kernel of Keys (1981), as Pillow does.

    Raise ValueError for images that are larger, or of another aspect ratio.
    """
    height, width = sides(image_size)
    h, w = images.shape[1:3]
    check(
        h <= height and w <= width and h * width == w * height,
        f"A condition image of {h}x{w} cannot be enlarged to {height}x{width}: give that size, or "
        "a smaller one of the same aspect ratio.",
    )
    if (h, w) == (height, width):
        return images
    return _along_both(images, enlarging_matrix(height, h), enlarging_matrix(width, w))


def reduced_copy(images: np.ndarray, factor: int) -> np.ndarray:
    """The means of blocks of factor x factor pixels of images (n, h, w, c), enlarged again."""
    h, w = images.shape[1:3]
    matrices = [
        enlarging_matrix(side, side // factor) @ means_matrix(side, factor) for side in (h, w)
    ]
    return _along_both(images, *matrices)


def grey_copy(images: np.ndarray) -> np.ndarray:
    """The grey levels (n, h, w, 1) of RGB images (n, h, w, 3)."""
    return (images * LUMA).sum(-1, keepdims=True, dtype=np.float32)


@functools.cache
def enlarging_matrix(new: int, old: int) -> np.ndarray:
    """The weights (new, old) of old samples in each of `new` samples of the same length."""
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    weights = cubic(np.abs(centres[:, None] - np.arange(old)))
    # At the borders, the weights of samples that are there sum to 1.
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def means_matrix(old: int, factor: int) -> np.ndarray:
    """The weights (old // factor, old) of the mean of each block of samples."""
    return np.repeat(np.eye(old // factor, dtype=np.float32), factor, 1) / np.float32(factor)


def cubic(x: np.ndarray) -> np.ndarray:
    """The cubic kernel with slope -1/2 at 1, at distances x >= 0."""
    near = (1.5 * x - 2.5) * x**2 + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _along_both(images: np.ndarray, by_row: np.ndarray, by_column: np.ndarray) -> np.ndarray:
    """Apply a matrix to the columns of images and another to their rows."""
    tall = _along_height(images, by_row)
    return _along_height(tall.swapaxes(1, 2), by_column).swapaxes(1, 2)


def _along_height(images: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    # A product for each image, so that an image does not depend on its batch.
    n, h, *rest = images.shape
    return (matrix @ images.reshape(n, h, -1)).reshape(n, len(matrix), *rest)


def read_condition_images(
    given: np.ndarray,
    channels: int,
    image_size: ImageSize,
    values: Levels,
    name: str = "The condition",
) -> np.ndarray:
    """Images (h, w, c) or (m, h, w, c) as a network takes them, in its size.

    Messages call them `name`. Raise ValueError for another number of channels, for other types than
    uint8 if the data had levels, for values that are not finite, and as `enlarge` does.
    """
    images = given[None] if given.ndim == 3 else given
    fits = images.dtype == np.uint8 if values == LEVELS else images.dtype.kind in "biuf"
    check(
        fits and images.ndim == 4 and images.shape[-1] == channels and len(images) > 0,
        f"{name} is {given.dtype} {given.shape}, but the network takes {channels} channels of "
        f"{values.describe()}: give such images (n, h, w, {channels}).",
    )
    check(bool(np.isfinite(images).all()), f"{name} has values that are not finite.")
    return enlarge(values.to_network(images), image_size)
