"""A folder of 200 files, many of them corrupt: each is loaded as an image or named in an error."""

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


def random_file(rng, image_format, mode):
    """The bytes of a small random image: animated (GIF, WEBP), rotated by EXIF (JPEG)."""
    width = rng.randrange(1, 40)
    height = rng.randrange(1, 40)
    seed = rng.randrange(2**32)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(pixels).convert(mode)
    options = {}
    if image_format in ("GIF", "WEBP"):
        options = {"save_all": True, "append_images": [image, image]}
    if image_format == "JPEG":
        exif = Image.Exif()
        exif[0x0112] = rng.randrange(1, 9)
        options["exif"] = exif
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def damage(rng, content):
    """Change the bytes of a file in a random way. The file may stay readable."""
    changed = bytearray(content)
    kind = rng.choice(["truncate", "empty", "bits", "zeros", "text", "double"])
    if kind == "truncate":
        return bytes(changed[: rng.randrange(len(changed))])
    if kind == "bits":
        for _ in range(rng.randrange(1, 20)):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    if kind == "zeros":
        start = rng.randrange(len(changed))
        changed[start : start + 50] = bytes(len(changed[start : start + 50]))
    replaced = {"empty": b"", "text": b"<html>404</html>", "double": bytes(2 * changed)}
    return replaced.get(kind, bytes(changed))


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
    """100 intact files, 92 damaged ones, and 8 with odd names."""
    root = tmp_path_factory.mktemp("fuzzed")
    rng = random.Random(0)
    for i in range(192):
        image_format = FORMATS[i % len(FORMATS)]
        mode = rng.choice(MODES.get(image_format, ["L", "RGB"]))
        content = random_file(rng, image_format, mode)
        suffix = {"JPEG": "jpg", "TIFF": "tif"}.get(image_format, image_format.lower())
        (root / f"{i:03d}.{suffix}").write_bytes(content if i < 100 else damage(rng, content))
    for name in ODD_NAMES:
        (root / name).write_bytes(random_file(rng, "PNG", "RGB"))
    return root


def load(folder, max_corrupt_fraction=0.9):
    """The images of a folder, and the text printed to stderr."""
    stderr = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stderr(stderr):
        warnings.simplefilter("ignore")  # Pillow warns of some damaged files
        images = Folder(path=str(folder), max_corrupt_fraction=max_corrupt_fraction).load(16, 3)
    return images, stderr.getvalue()


@pytest.fixture(scope="module")
def loaded(folder):
    return load(folder)


def is_named(path, stderr):
    return f"Cannot read the image {path} (" in stderr


def test_each_file_is_loaded_or_named_in_an_error(folder, loaded):
    images, stderr = loaded
    named = [path.name for path in folder.iterdir() if is_named(path, stderr)]
    assert len(images) + len(named) == 200
    assert 20 < len(named) < 120
    for name in named:
        assert name[:3].isdigit(), name
        # An intact TIFF of floats is an error too, because the range of its pixels is unknown.
        assert int(name[:3]) >= 100 or name.endswith("tif"), name
    assert f"{len(named)} of 200 images cannot be used and are skipped." in stderr


def test_skipped_files_do_not_shift_the_other_images(folder, loaded, tmp_path):
    images, stderr = loaded
    kept = sorted(path.name for path in folder.iterdir() if not is_named(path, stderr))
    rows = np.array([0, 1, 50, len(kept) - 1])
    for row in rows:
        shutil.copy(folder / kept[row], tmp_path)
    alone, _ = load(tmp_path)
    np.testing.assert_array_equal(images.read(rows)["image"], alone.images)


def test_too_many_corrupt_files_are_an_error_that_counts_them_and_names_the_first(folder):
    message = (
        r"^\d+ of 200 images cannot be used: replace or remove them, "
        r"or raise --data\.max-corrupt-fraction\. The first error: Cannot read the image .*\.$"
    )
    with pytest.raises(ValueError, match=message):
        load(folder, max_corrupt_fraction=0.01)


def test_the_error_for_a_set_without_intact_images_suggests_no_larger_fraction(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    message = r"^1 of 1 images cannot be used: replace or remove them\. The first error: "
    with pytest.raises(ValueError, match=message):
        load(tmp_path, max_corrupt_fraction=0.9)


def test_images_on_disk_are_checked_too(folder, loaded, monkeypatch):
    in_memory, _ = loaded
    monkeypatch.setattr("ddpm_jax.data.loading.IN_MEMORY_BYTES", 0)
    on_disk, stderr = load(folder)
    rows = np.asarray([0, len(in_memory) - 1])
    np.testing.assert_array_equal(on_disk.read(rows)["image"], in_memory.read(rows)["image"])
    assert len(on_disk) == len(in_memory)
    assert "are skipped" in stderr


def test_max_corrupt_fraction_must_be_below_1():
    with pytest.raises(ValueError, match=r"data\.max_corrupt_fraction must be in \[0, 1\)"):
        Folder(path="x", max_corrupt_fraction=1.0)
