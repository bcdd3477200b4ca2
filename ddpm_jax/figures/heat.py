"""Draw maps as heat over an image."""

import math
import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from ddpm_jax.figures.plots import labelled_rows
from ddpm_jax.generation.attention_maps import bicubic_matrix

MIN_SIDE = 96
"""Smallest side of an image in pixels, so that the titles have room above it."""
COLOURS = "inferno"
HEAT = 0.65
"""The share of the heat's colours in a pixel. The rest is the image, in grey."""


def heat_over(
    image: UInt8[np.ndarray, "h w 3"], maps: Float[np.ndarray, "n h2 w2"]
) -> UInt8[np.ndarray, "n h w 3"]:
    """Each map over the image, resized by bicubic interpolation, from black to yellow."""
    from matplotlib import colormaps

    rows = bicubic_matrix(maps.shape[1], image.shape[0])  # (h, h2)
    columns = bicubic_matrix(maps.shape[2], image.shape[1])  # (w, w2)
    resized = rows @ maps @ columns.T  # (n, h, w)
    least = resized.min((1, 2), keepdims=True)
    spread = resized.max((1, 2), keepdims=True) - least
    # A constant map is black everywhere.
    heat = (resized - least) / np.where(spread > 0, spread, 1)
    grey = image.mean(-1, keepdims=True) / 255  # (h, w, 1)
    drawn = HEAT * colormaps[COLOURS](heat)[..., :3] + (1 - HEAT) * grey
    return np.round(255 * drawn).astype(np.uint8)


def save_heat(
    image: UInt8[np.ndarray, "h w 3"],
    words: Sequence[str],
    maps: Float[np.ndarray, "words n h2 w2"],
    titles: Sequence[str],
    path: str | os.PathLike,
) -> None:
    """Write a PNG with a row per word: the image, then each of the n maps over it.

    Small images are enlarged by a whole factor. Raise ValueError if there is no word.
    """
    factor = math.ceil(MIN_SIDE / min(image.shape[:2]))
    image = image.repeat(factor, axis=0).repeat(factor, axis=1)
    rows = [
        (word.replace("$", r"\$"), np.concatenate([image[None], heat_over(image, of_word)]))
        for word, of_word in zip(words, maps, strict=True)
    ]
    labelled_rows(rows, path, ("image", *titles))
