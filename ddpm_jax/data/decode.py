"""Decode image files into uint8 arrays of one size."""

from __future__ import annotations

import errno
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageFile, PngImagePlugin, UnidentifiedImageError

from ddpm_jax.image_size import ImageSize, sides

T = TypeVar("T")
File = Path | io.BytesIO | str
MAX_PIXELS = 89_478_485
"""Pillow's own limit: the pixels of 256 MiB of RGB."""
ORIENTATION = 0x0112
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""{EXIF orientation: what makes the image upright}."""
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
SYSTEM_ERRORS = {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT}
"""Errors of the system, which say nothing of an image."""
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


def to_colour(image: Image.Image, channels: int, ground: str = "white") -> Image.Image:
    """Convert `image` to 8-bit greyscale (1 channel) or RGB (3).

    Apply the EXIF orientation, scale 16-bit pixels to 8 bits (v * 255 / 65535) and show transparent
    pixels as the colour `ground`. Raise ValueError for pixels of another type or range, such as
    floats.
    """
    image = upright(image)
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, ground), image)
    return image.convert({1: "L", 3: "RGB"}[channels])


def resize_image(
    image: Image.Image, image_size: ImageSize, channels: int, resize: str, ground: str = "white"
) -> np.ndarray:
    """Convert `image` as `to_colour` does, to uint8 (h, w, channels) of this size.

    Cut out the middle, as much as has the new aspect ratio (`resize` "crop"), or change the aspect
    ratio ("squash"); interpolate bilinearly with antialiasing.
    """
    image = to_colour(image, channels, ground)
    height, width = sides(image_size)
    if resize == "crop":
        crop_width = min(image.width, max(1, round(image.height * width / height)))
        crop_height = min(image.height, max(1, round(image.width * height / width)))
        left = (image.width - crop_width) // 2
        top = (image.height - crop_height) // 2
        image = image.crop((left, top, left + crop_width, top + crop_height))
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image, np.uint8).reshape(height, width, channels)


def upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says.

    Pillow's `exif_transpose` also encodes all EXIF tags anew, and fails if one of them is odd.
    """
    # Some formats are turned while they are loaded.
    image.load()
    method = _transposition(image)
    return image if method is None else image.transpose(method)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """The width and height of the upright image, from its header alone if possible."""
    if _transposition(image) is None:
        return image.size
    return upright(image).size


def _transposition(image: Image.Image) -> Image.Transpose | None:
    try:
        return TRANSPOSITIONS.get(image.getexif().get(ORIENTATION, 1))
    # EXIF that Pillow cannot parse raises errors of many types, and says nothing.
    except Exception:
        return None


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey pixels to 8 bits; PIL's own conversion would clip them at 255."""
    pixels = np.asarray(image)
    lowest = pixels.min()
    highest = pixels.max()
    if image.mode == "F" or lowest < 0 or highest > 65535:
        raise ValueError(
            f"pixels of mode {image.mode} from {lowest} to {highest}, not of 8 or 16 bits"
        )
    grey = Image.fromarray(np.round(pixels / 257).astype(np.uint8))
    if "transparency" in image.info:
        is_opaque = pixels != image.info["transparency"]
        grey.putalpha(Image.fromarray(np.where(is_opaque, 255, 0).astype(np.uint8)))
    return grey


def convert_file(file: File, convert: Callable[[ImageFile.ImageFile], T]) -> T:
    """Open an image file and return `convert(image)`. Raise whatever Pillow raises.

    A PNG is read without its metadata if Pillow refuses to read it with them.
    """
    try:
        with Image.open(file) as image:
            _scale_transparency(image)
            return convert(image)
    except BOMBS:
        raise
    except Exception:
        content = file.getvalue() if isinstance(file, io.BytesIO) else Path(file).read_bytes()
        if not content.startswith(PNG_SIGNATURE):
            raise
    with PngImagePlugin.PngImageFile(io.BytesIO(without_metadata(content))) as image:
        _scale_transparency(image)
        return convert(image)


def without_metadata(png: bytes) -> bytes:
    """Remove the chunks of a PNG that are not necessary for its pixels: its text, its profile, ...

    Pillow refuses a PNG for a large text or colour profile, and for a wrong checksum of either. An
    orientation is kept if it is in an EXIF chunk with the right checksum, and lost if only a text
    states it.
    """
    kept = [PNG_SIGNATURE]
    start = len(PNG_SIGNATURE)
    while start + 8 <= len(png):
        length, kind = struct.unpack_from(">I4s", png, start)
        # After its length and kind, a chunk holds `length` bytes and a checksum.
        end = start + 12 + length
        chunk = png[start:end]
        is_exif = kind == b"eXIf" and zlib.crc32(chunk[4:-4]).to_bytes(4, "big") == chunk[-4:]
        # An upper-case first letter marks a chunk that every reader must understand.
        if kind[:1].isupper() or kind == b"tRNS" or is_exif:
            kept.append(chunk)
        start = end
    return b"".join(kept)


def _scale_transparency(image: ImageFile.ImageFile) -> None:
    """Scale the transparent colour of a PNG to 8 bits. Pillow scales only its pixels."""
    colour = image.info.get("transparency")
    if image.format != "PNG" or colour is None:
        return
    raw_mode = image.tile[0].args
    if raw_mode in ("L;2", "L;4"):
        image.info["transparency"] = colour * {"L;2": 85, "L;4": 17}[raw_mode]
    if raw_mode == "RGB;16B":
        image.info["transparency"] = tuple(level >> 8 for level in colour)


def decode_image(
    file: File,
    name: str,
    image_size: ImageSize,
    channels: int,
    resize: str,
    max_pixels: int = MAX_PIXELS,
    limit_name: str = "--data.max-pixels",
    ground: str = "white",
) -> np.ndarray:
    """Decode `file` and convert it as `resize_image` does.

    Raise ValueError if that is impossible, or if the image has more than `max_pixels`; the message
    calls the image `name` and the limit `limit_name`. A larger limit than `MAX_PIXELS` also raises
    Pillow's own limit, for the whole process.
    """
    if max_pixels > MAX_PIXELS and Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels)

    def convert(image: Image.Image) -> np.ndarray:
        return resize_image(image, image_size, channels, resize, ground)

    return _decode(file, name, convert, max_pixels, f"raise {limit_name}, or ")


def decode_colour(file: File, name: str, channels: int, ground: str = "white") -> Image.Image:
    """Decode `file` at its own size and convert it as `to_colour` does.

    Raise ValueError if that is impossible, or if the image has more than `MAX_PIXELS`.
    """
    return _decode(file, name, lambda image: to_colour(image, channels, ground), MAX_PIXELS, "")


def _decode(
    file: File,
    name: str,
    convert: Callable[[Image.Image], T],
    max_pixels: int,
    remedy_for_size: str,
) -> T:
    def convert_checked(image: ImageFile.ImageFile) -> T:
        if image.width * image.height > max_pixels:
            size = f"{image.width}x{image.height}"
            raise Image.DecompressionBombError(f"{size} is above {max_pixels:,} pixels")
        return convert(image)

    try:
        return convert_file(file, convert_checked)
    # PIL raises many types: OSError, SyntaxError, struct.error, DecompressionBombError, ...
    except Exception as error:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) in SYSTEM_ERRORS:
            raise
        unknown_format = isinstance(error, UnidentifiedImageError)
        cause = "not in a format that Pillow knows, or damaged" if unknown_format else error
        remedy = remedy_for_size if isinstance(error, BOMBS) else ""
        message = f"Cannot read the image {name} ({cause}): {remedy}replace or remove it."
        raise ValueError(message) from error
