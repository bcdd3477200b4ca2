"""Every image whose pixels Pillow can decode becomes an array, whatever else its file holds."""

import errno
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from ddpm_jax.data import decode as decoding
from ddpm_jax.data.decode import PNG_SIGNATURE, decode_image


def decode(content, size):
    """The grey pixels (size, size) of the bytes of an image."""
    return decode_image(io.BytesIO(content), "a", size, 1, "crop")[..., 0]


def encode(image, image_format, **options):
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def png_chunk(kind, content):
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def png(size, depth, colour_type, rows, before=(), after=()):
    """The bytes of a PNG; `before` and `after` are chunks around the pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour_type, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    chunks = [header, *before, pixels, *after, png_chunk(b"IEND", b"")]
    return b"".join([PNG_SIGNATURE, *chunks])


LARGE = zlib.compress(bytes(2 * 2**20))
METADATA = {
    "profile": png_chunk(b"iCCP", b"name\0\0" + LARGE),
    "text": png_chunk(b"zTXt", b"Comment\0\0" + LARGE),
    "wrong checksum": png_chunk(b"tEXt", b"Comment\0text")[:-1] + b"!",
    "wrong checksum of EXIF": png_chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0")[:-1] + b"!",
    "odd length": png_chunk(b"pHYs", b"odd"),
}


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EIO, "Input/output error")])
def test_an_image_is_not_corrupt_because_the_system_fails(error, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(decoding, "convert_file", fail)
    with pytest.raises(type(error)):
        decode(b"", 4)


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("kind", METADATA)
def test_metadata_that_pillow_refuses_do_not_hide_the_pixels_of_a_png(kind, place):
    rows_of_pixels = 4 * [[60, 60, 200, 200]]
    content = png((4, 4), 8, 0, map(bytes, rows_of_pixels), **{place: [METADATA[kind]]})
    np.testing.assert_array_equal(decode(content, 4), rows_of_pixels)


def test_a_png_whose_header_is_damaged_is_called_broken():
    content = bytearray(png((1, 1), 8, 0, [b"\0"]))
    content[len(PNG_SIGNATURE) + 8] ^= 1  # the width
    with pytest.raises(ValueError, match=r"image a \(broken PNG file .*IHDR"):
        decode(content, 1)


@pytest.mark.parametrize(
    ("depth", "colour_type", "row", "transparent", "expected"),
    [
        (2, 0, bytes([0b00011011]), (1,), [0, 255, 170, 255]),
        (4, 0, bytes([0x01, 0x2F]), (1,), [0, 255, 34, 255]),
        (8, 0, bytes([4, 5, 6, 7]), (5,), [4, 255, 6, 7]),
        (16, 0, struct.pack(">4H", 1028, 0, 1029, 257), (1028,), [255, 0, 4, 1]),
        (16, 2, struct.pack(">6H", 0, 0, 0, 1028, 4, 4), (1028, 4, 4), [0, 255]),
        (16, 2, struct.pack(">6H", 0, 0, 0, 1028, 4, 4), (4, 0, 0), [255, 1]),
    ],
)
def test_the_transparent_colour_of_a_png_shows_white_at_every_depth(
    depth, colour_type, row, transparent, expected
):
    size = len(expected)
    chunk = png_chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
    content = png((size, size), depth, colour_type, size * [row], [chunk])
    np.testing.assert_array_equal(decode(content, size)[0], expected)


@pytest.mark.parametrize(("depth", "step"), [(8, 1), (16, 257)])
def test_the_transparent_colour_takes_the_ground(depth, step):
    row = b"".join((level * step).to_bytes(depth // 8, "big") for level in (4, 9))
    content = png((2, 2), depth, 0, [row, row], [png_chunk(b"tRNS", struct.pack(">H", 4 * step))])
    pixels = decode_image(io.BytesIO(content), "a", 2, 1, "crop", ground="black")
    np.testing.assert_array_equal(pixels[0, :, 0], [0, 9])


def exif_with_rational_description(orientation):
    """EXIF of two entries: ImageDescription, whose type should be text, and Orientation."""
    entries = struct.pack(">HHII", 0x010E, 5, 1, 38)
    entries += struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    return b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + entries + struct.pack(">III", 0, 1, 2)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_orientation_is_applied_whatever_the_other_tags_hold(orientation):
    image = Image.fromarray(np.arange(0, 240, 15, np.uint8).reshape(4, 4))
    content = encode(image, "PNG", exif=exif_with_rational_description(orientation))
    image.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(decode(content, 4), expected)


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_exif_that_cannot_be_parsed_does_not_hide_the_pixels(image_format):
    image = Image.new("L", (8, 8), 100)
    content = encode(image, image_format, exif=b"Exif\0\0not a TIFF header")
    np.testing.assert_allclose(decode(content, 8), 100, atol=2)
