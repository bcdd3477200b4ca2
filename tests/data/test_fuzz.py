"""Two hundred files as the world has them: each is an image or is named, and none stands in for another."""

import contextlib
import io
import random
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data.folder import Folder

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MODES = {
    "PNG": ["L", "RGB", "RGBA", "P", "I;16", "1", "LA"],
    "JPEG": ["L", "RGB", "CMYK"],
    "TIFF": ["L", "F", "I;16"],
}


def sound(moment, kind, mode):
    """A small random image of a format and mode, as bytes: animated where the format knows that, turned by EXIF."""
    size = moment.randrange(1, 40), moment.randrange(1, 40)
    pixels = np.random.default_rng(moment.randrange(2**32)).integers(
        0, 256, (*size[::-1], 3), np.uint8
    )
    image = Image.fromarray(pixels)
    image = (
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
        if mode == "I;16"
        else image.convert(mode)
    )
    options = {"save_all": True, "append_images": [image, image]} if kind in ("GIF", "WEBP") else {}
    if kind == "JPEG":
        exif = Image.Exif()
        exif[0x0112] = moment.randrange(1, 9)
        options["exif"] = exif
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def spoil(moment, content):
    """The same with some harm, which may leave it readable."""
    changed = bytearray(content)
    kind = moment.choice(["cut", "emptied", "bits", "zeros", "text", "doubled"])
    if kind == "cut":
        return bytes(changed[: moment.randrange(len(changed))])
    if kind == "bits":
        for _ in range(moment.randrange(1, 20)):
            changed[moment.randrange(len(changed))] ^= 1 << moment.randrange(8)
    if kind == "zeros":
        start = moment.randrange(len(changed))
        changed[start : start + 50] = bytes(len(changed[start : start + 50]))
    return {"emptied": b"", "text": b"<html>404</html>", "doubled": bytes(2 * changed)}.get(
        kind, bytes(changed)
    )


ODD_NAMES = (
    "a b.png",
    "ä.png",
    "日本.png",
    "new\nline.png",
    "-rf.png",
    "%s{0}.png",
    "'\".png",
    "x" * 200 + ".png",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """100 sound files, 92 with some harm, and 8 with odd names."""
    root, moment = tmp_path_factory.mktemp("fuzzed"), random.Random(0)
    for i in range(192):
        kind = FORMATS[i % len(FORMATS)]
        content = sound(moment, kind, moment.choice(MODES.get(kind, ["L", "RGB"])))
        suffix = {"JPEG": "jpg", "TIFF": "tif"}.get(kind, kind.lower())
        (root / f"{i:03d}.{suffix}").write_bytes(content if i < 100 else spoil(moment, content))
    for name in ODD_NAMES:
        (root / name).write_bytes(sound(moment, "PNG", "RGB"))
    return root


def load(folder, max_corrupt_fraction=0.9):
    """The images of a folder, and what is said on stderr."""
    words = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stderr(words):
        warnings.simplefilter("ignore")  # Pillow warns of some damaged files
        images = Folder(path=str(folder), max_corrupt_fraction=max_corrupt_fraction).load(16, 3)
    return images, words.getvalue()


@pytest.fixture(scope="module")
def loaded(folder):
    return load(folder)


def test_each_file_is_an_image_or_is_named(folder, loaded):
    images, words = loaded
    named = [path.name for path in folder.iterdir() if f"cannot read the image {path} (" in words]
    assert len(images) + len(named) == 200
    assert 20 < len(named) < 120
    for name in named:  # a TIFF of floats is sound and has no range
        assert name[:3].isdigit(), name
        assert int(name[:3]) >= 100 or name.endswith("tif"), name
    assert f"{len(named)} of 200 images cannot be used and are left out" in words


def test_every_image_is_that_of_its_own_file(folder, loaded, tmp_path):
    """What is left out moves no other image to another place in the order of names."""
    images, words = loaded
    kept = sorted(
        path.name for path in folder.iterdir() if f"cannot read the image {path} (" not in words
    )
    rows = np.array([0, 1, 50, len(kept) - 1])
    for row in rows:
        shutil.copy(folder / kept[row], tmp_path)
    alone, _ = load(tmp_path)
    np.testing.assert_array_equal(images.read(rows)["image"], alone.images)


def test_more_than_the_share_is_an_error_that_names_one_and_counts_all(folder):
    message = (
        r"^\d+ of 200 images cannot be used: cannot read the image .*--data.max-corrupt-fraction$"
    )
    with pytest.raises(ValueError, match=message):
        load(folder, max_corrupt_fraction=0.01)


def test_images_left_on_disk_are_looked_through_first(folder, loaded, monkeypatch):
    in_memory, _ = loaded
    monkeypatch.setattr("ddpm_jax.data.IN_MEMORY_BYTES", 0)
    on_disk, words = load(folder)
    which = np.asarray([0, len(in_memory) - 1])
    np.testing.assert_array_equal(on_disk.read(which)["image"], in_memory.read(which)["image"])
    assert len(on_disk) == len(in_memory)
    assert "are left out" in words


def test_a_share_is_a_share():
    with pytest.raises(ValueError, match=r"data\.max_corrupt_fraction must be in \[0, 1\)"):
        Folder(path="x", max_corrupt_fraction=1.0)
