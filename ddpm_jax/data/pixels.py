"""Convert pixels between uint8, for files, and float32 in [-1, 1], for networks."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from ddpm_jax.errors import check


def to_floats(images: np.ndarray) -> np.ndarray:
    """Convert uint8 in [0, 255] to float32 in [-1, 1]. Floats stay: a network takes them so."""
    if np.issubdtype(images.dtype, np.floating):
        return images
    levels = np.linspace(-1.0, 1.0, 256, dtype=np.float32)
    return levels[images]


def to_uint8(images: ArrayLike) -> np.ndarray:
    """Convert floats in [-1, 1] to uint8 of the same shape: clip, scale, round.

    Halves are rounded to even, so 0.0 (127.5) becomes 128. Raise ValueError for pixels that are not
    floats or not finite.
    """
    pixels = finite_floats(images)
    return np.rint((np.clip(pixels, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)


def finite_floats(images: ArrayLike) -> np.ndarray:
    """The pixels in float32 or float64. Raise ValueError as `to_uint8` does."""
    pixels = np.asarray(images)
    if np.issubdtype(pixels.dtype, np.integer) or pixels.dtype == bool:
        raise ValueError(
            f"Pixels of type {pixels.dtype} are not floats in [-1, 1]: use them without conversion."
        )
    # Scale in float32: bfloat16 cannot represent 256 levels.
    pixels = pixels.astype(np.promote_types(pixels.dtype, np.float32))
    num_broken = pixels.size - np.count_nonzero(np.isfinite(pixels))
    if num_broken:
        raise ValueError(
            f"{num_broken} of {pixels.size} pixels are not finite: "
            "check the parameters and the settings of sampling."
        )
    return pixels


def to_image(pixels: np.ndarray) -> Image.Image:
    """The PIL image of uint8 pixels (h, w, c): greyscale for one channel, RGB for three.

    Any other number of channels is shown in the colours of `channel_colours`.
    """
    channels = pixels.shape[-1]
    if channels == 1:
        return Image.fromarray(pixels[..., 0])
    if channels == 3:
        return Image.fromarray(pixels)
    return Image.fromarray(np.rint(pixels @ channel_colours(channels)).astype(np.uint8))


def choose_channels(pixels: np.ndarray, shown: Sequence[int]) -> np.ndarray:
    """The channels `shown` of pixels (..., c), in this order; all of them if none are named."""
    return pixels[..., list(shown)] if shown else pixels


def check_shown(shown: Sequence[int], channels: int, setting: str) -> None:
    """Raise ValueError, with the setting, unless `shown` names one or three of the channels."""
    check(
        len(shown) in (0, 1, 3) and all(0 <= channel < channels for channel in shown),
        f"{setting} must name one channel, or three for red, green and blue, among "
        f"0..{channels - 1}, not {' '.join(map(str, shown))}.",
    )


def describe_colours(channels: int, shown: Sequence[int] = ()) -> str | None:
    """Describe the colours in pictures of images with this number of channels.

    `shown` are the chosen channels. None for grey and RGB images without a choice.
    """
    if shown:
        names = " ".join(map(str, shown))
        return f"channel {names} in grey" if len(shown) == 1 else f"channels {names} as RGB"
    if channels in (1, 3):
        return None
    return f"{channels} channels in false colours of evenly spaced hues, the first one red"


def channel_colours(channels: int) -> np.ndarray:
    """False colours (channels, 3) that turn equal levels of all channels into the same grey.

    The hues are spaced evenly from red: 2 channels are red and cyan, 3 are red, green and blue.
    """
    hues = np.arange(channels) / channels
    colours = np.array([colorsys.hsv_to_rgb(hue, 1, 1) for hue in hues])
    return colours / colours.sum(0)
