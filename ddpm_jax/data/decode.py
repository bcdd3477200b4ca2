"""Decoding of image files into uint8 arrays of one size."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError


def resize_image(image: Image.Image, image_size: int, channels: int, resize: str) -> np.ndarray:
    """`image` as uint8 (image_size, image_size, channels): grey for 1 channel, RGB for 3, bilinear with antialiasing.

    It is turned upright (EXIF), 16-bit pixels become 8-bit ones by v * 255 / 65535, and transparent pixels show white.
    ValueError if its pixels have another range, such as floats.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(
        ("I", "F")
    ):  # 16-bit pixels, which PIL's own conversion would clip at 255
        pixels = np.asarray(image)
        if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError(
                f"pixels of mode {image.mode} from {pixels.min()} to {pixels.max()}, not of 8 or 16 bits"
            )
        image = Image.fromarray(np.round(pixels / 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert({1: "L", 3: "RGB"}[channels])
    if resize == "crop":
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if image.size != (image_size, image_size):
        image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(image, np.uint8).reshape(image_size, image_size, channels)


def decode_image(
    file: Path | io.BytesIO | str, name: str, image_size: int, channels: int, resize: str
) -> np.ndarray:
    """The image in `file`, fitted to uint8 (image_size, image_size, channels); a ValueError calls it `name`."""
    try:
        with Image.open(file) as image:
            limit = Image.MAX_IMAGE_PIXELS  # PIL only warns up to twice this
            if limit and image.width * image.height > limit:
                raise Image.DecompressionBombError(
                    f"{image.width}x{image.height} is above {limit} pixels"
                )
            return resize_image(image, image_size, channels, resize)
    except Exception as error:  # PIL raises many kinds: OSError, SyntaxError, struct.error, DecompressionBombError, ...
        cause = (
            "no format that Pillow knows" if isinstance(error, UnidentifiedImageError) else error
        )
        raise ValueError(
            f"cannot read the image {name} ({cause}): replace it by a sound one or remove it"
        ) from error
