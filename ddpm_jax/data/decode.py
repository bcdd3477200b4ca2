"""Decode image files into uint8 arrays of one size."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError


def resize_image(image: Image.Image, image_size: int, channels: int, resize: str) -> np.ndarray:
    """Convert `image` to uint8 (image_size, image_size, channels): greyscale (1) or RGB (3).

    Apply the EXIF rotation, scale 16-bit pixels to 8 bits (v * 255 / 65535) and show transparent
    pixels as white. Cut out the middle square (`resize` "crop") or change the aspect ratio
    ("squash"); interpolate bilinearly with antialiasing. Raise ValueError for pixels of another
    type or range, such as floats.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        # PIL's own conversion would clip 16-bit pixels at 255.
        pixels = np.asarray(image)
        lowest = pixels.min()
        highest = pixels.max()
        if image.mode == "F" or lowest < 0 or highest > 65535:
            raise ValueError(
                f"pixels of mode {image.mode} from {lowest} to {highest}, not of 8 or 16 bits"
            )
        image = Image.fromarray(np.round(pixels / 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert({1: "L", 3: "RGB"}[channels])
    if resize == "crop":
        side = min(image.size)
        left = (image.width - side) // 2
        top = (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if image.size != (image_size, image_size):
        image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(image, np.uint8).reshape(image_size, image_size, channels)


def decode_image(
    file: Path | io.BytesIO | str, name: str, image_size: int, channels: int, resize: str
) -> np.ndarray:
    """Decode `file` and convert it as `resize_image` does.

    Raise ValueError if that is impossible; the message calls the image `name`.
    """
    try:
        with Image.open(file) as image:
            # Up to twice this limit, PIL itself only warns.
            limit = Image.MAX_IMAGE_PIXELS
            if limit and image.width * image.height > limit:
                size = f"{image.width}x{image.height}"
                raise Image.DecompressionBombError(f"{size} is above {limit} pixels")
            return resize_image(image, image_size, channels, resize)
    # PIL raises many types: OSError, SyntaxError, struct.error, DecompressionBombError, ...
    except Exception as error:
        unknown_format = isinstance(error, UnidentifiedImageError)
        cause = "not in a format that Pillow knows" if unknown_format else error
        message = f"Cannot read the image {name} ({cause}): replace or remove it."
        raise ValueError(message) from error
