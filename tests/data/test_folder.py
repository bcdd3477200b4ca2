"""A folder of image files of any kind becomes uint8 images, or an error of one line."""

import os

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import decode, loading
from ddpm_jax.data.folder import Folder
from ddpm_jax.data.loading import InMemory, OnDisk

RED, WHITE = (255, 0, 0), (255, 255, 255)


def load(path, image_size=8, channels=3, **options):
    return Folder(path=str(path), **options).load(image_size, channels)


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def save_solid(path, level, mode="L", size=(8, 8), **options):
    save(path, Image.new(mode, size, level), **options)


def only(images) -> np.ndarray:
    assert len(images) == 1
    return images.read(np.array([0]))["image"][0]


def assert_close(image, colour, atol=3):
    np.testing.assert_allclose(image, np.broadcast_to(colour, image.shape), atol=atol)


def test_describe_does_not_need_the_folder():
    assert Folder(path="no/where").describe() == "folder: no/where"
    assert Folder(path="no/where", split="train").describe() == "folder: no/where, split train"


def test_nested_files_of_all_suffixes_are_read_in_sorted_order(tmp_path):
    names = [
        "b/2.PNG",
        "a/deep/er/1.jpg",
        "c.Jpeg",
        "a/0.bmp",
        "d.gif",
        "e.webp",
        "f.tif",
        "g.TIFF",
    ]
    for name in reversed(names):
        save_solid(tmp_path / name, 10 + 20 * sorted(names).index(name))
    (tmp_path / "readme.txt").write_text("not an image")
    images = load(tmp_path, channels=1)
    assert isinstance(images, InMemory)
    assert images.labels is None
    np.testing.assert_allclose(images.images[:, 4, 4, 0], 10 + 20 * np.arange(8), atol=2)


def test_every_kind_of_file_is_read_or_counted_by_kind(tmp_path, capsys):
    for suffix in ("png", "jfif", "jpe", "avif", "ppm", "jp2", "tga"):
        save_solid(tmp_path / f"image.{suffix}", RED, "RGB")
    for name in ("a.heic", "b.HEIC", "c.mpg", "d.h5", "Makefile", ".hidden.png", ".folder/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert_close(load(tmp_path).images, RED)
    assert len(load(tmp_path)) == 7
    kinds = counted(capsys.readouterr().err)
    assert kinds[:2] == ["2 .heic", "2 hidden"]
    assert sorted(kinds[2:]) == ["1 .h5", "1 .mpg", "1 without suffix"]


def counted(text):
    """The counts in the first line of `text` that says what is left out."""
    line = next(line for line in text.splitlines() if "Left out of" in line)
    return line.rpartition(": ")[2].removesuffix(".").split(", ")


def test_a_long_list_of_kinds_is_cut(tmp_path, capsys):
    save_solid(tmp_path / "a.png", 0)
    for i in range(13):
        (tmp_path / f"a.x{i}").write_text("")
    load(tmp_path)
    kinds = counted(capsys.readouterr().err)
    assert len(kinds) == 11
    assert kinds[-1] == "3 others"


def test_hidden_files_and_folders_are_skipped(tmp_path):
    save_solid(tmp_path / "a.png", 50)
    (tmp_path / "._a.png").write_bytes(b"resource fork")
    save_solid(tmp_path / ".thumbnails" / "b.png", 90)
    assert_close(only(load(tmp_path)), 50)


def test_subfolders_are_classes(tmp_path):
    for name in ("dog/1.png", "cat/1.png", "dog/0.png", "eel/0.png"):
        save_solid(tmp_path / name, 0)
    (tmp_path / "bat").mkdir()
    images = load(tmp_path)
    assert images.labels.dtype == np.int32
    np.testing.assert_array_equal(images.labels, [0, 1, 1, 2])
    assert images.classes == ("cat", "dog", "eel")


def test_classes_are_in_natural_order(tmp_path):
    for name in ("10", "2", "1", "b2a10", "b2a9", "b", "01"):
        save_solid(tmp_path / name / "0.png", 0)
    images = load(tmp_path)
    assert images.classes == ("01", "1", "2", "10", "b", "b2a9", "b2a10")
    # The images themselves are in the order of their paths: 01, 1, 10, 2, b, b2a10, b2a9.
    np.testing.assert_array_equal(images.labels, [0, 1, 3, 2, 4, 6, 5])


def test_a_folder_of_splits_needs_a_choice_and_gives_the_classes_of_that_split(tmp_path):
    for name in ("train/cat/0.png", "train/dog/0.png", "Test/dog/0.png"):
        save_solid(tmp_path / name, 0)
    message = (
        r"holds the splits Test, train: choose one by --data\.split, or give --data\.split \. if"
    )
    with pytest.raises(ValueError, match=message):
        load(tmp_path)
    train = load(tmp_path, split="train")
    assert len(train) == 2
    assert train.classes == ("cat", "dog")
    assert load(tmp_path, split="Test").classes == ("dog",)
    with pytest.raises(
        FileNotFoundError, match=r"no folder val in .*: choose .* among Test, train\."
    ):
        load(tmp_path, split="val")


def test_a_dot_as_split_reads_folders_named_like_splits_as_classes(tmp_path):
    for name in ("train/0.png", "tractor/0.png"):
        save_solid(tmp_path / name, 0)
    assert load(tmp_path, split=".").classes == ("tractor", "train")


@pytest.mark.parametrize("other", ["top.png", "cat/deep/2.png"])
def test_an_image_outside_the_direct_subfolders_means_no_labels(tmp_path, other, capsys):
    for name in ("cat/1.png", "dog/1.png", other):
        save_solid(tmp_path / name, 0)
    images = load(tmp_path)
    assert images.labels is None
    assert images.classes is None
    message = f"The folders are no classes, because {other} is in no direct subfolder."
    assert message in capsys.readouterr().err


def test_a_linked_folder_is_read_and_a_circle_of_links_rejected(tmp_path):
    save_solid(tmp_path / "elsewhere" / "1.png", 70)
    (tmp_path / "set").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "set" / "class")
    assert_close(only(load(tmp_path / "set")), 70)
    os.symlink(tmp_path / "elsewhere", tmp_path / "elsewhere" / "again")
    with pytest.raises(ValueError, match=r"class/again leads to .*elsewhere.*remove the link"):
        load(tmp_path / "set")


@pytest.mark.parametrize(
    ("mode", "colour", "suffix", "expected"),
    [
        ("RGB", RED, "jpg", RED),
        ("L", 100, "jpg", (100, 100, 100)),
        ("1", 1, "png", WHITE),
        ("CMYK", (0, 255, 255, 0), "jpg", RED),
        ("CMYK", (0, 255, 255, 0), "tif", RED),
        ("RGBA", (*RED, 255), "png", RED),
        ("RGBA", (*RED, 0), "png", WHITE),
        ("RGBA", (0, 0, 0, 128), "webp", (127, 127, 127)),
        ("LA", (0, 51), "png", (204, 204, 204)),
        ("I;16", 257 * 40, "png", (40, 40, 40)),
        ("I;16", 257 * 200, "tif", (200, 200, 200)),
    ],
)
def test_every_mode_is_converted_to_rgb_and_to_grey(tmp_path, mode, colour, suffix, expected):
    save_solid(tmp_path / f"image.{suffix}", colour, mode)
    assert_close(only(load(tmp_path)), expected)
    luma = round(np.dot(expected, [0.299, 0.587, 0.114]))
    assert_close(only(load(tmp_path, channels=1)), luma)


def test_a_transparent_palette_entry_shows_white(tmp_path):
    image = Image.new("P", (8, 8), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (0, 0, 8, 4))
    save(tmp_path / "image.gif", image, transparency=1)
    pixels = only(load(tmp_path))
    assert_close(pixels[:4], WHITE)
    assert_close(pixels[4:], RED)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_the_first_frame_of_an_animation_is_used(tmp_path, suffix):
    first, *rest = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    save(tmp_path / f"image.{suffix}", first, save_all=True, append_images=rest)
    assert_close(only(load(tmp_path)), RED)


def test_exif_rotation_is_applied_before_the_crop(tmp_path):
    image = Image.new("RGB", (8, 16), "blue")
    image.paste("red", (0, 0, 8, 6))  # the top; the middle square keeps 2 rows of it
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned left: turn right by 90 degrees, to 16 wide
    save(tmp_path / "image.png", image, exif=exif)
    pixels = only(load(tmp_path))
    assert_close(pixels[:, -2:], RED)
    assert_close(pixels[:, :-2], (0, 0, 255))


@pytest.mark.parametrize("size", [(8, 8), (50, 20), (3, 200), (1, 1)])
@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_images_of_mixed_sizes_become_one_size(tmp_path, size, resize):
    save_solid(tmp_path / "a.png", RED, "RGB", size)
    save_solid(tmp_path / "b.png", RED, "RGB", (16, 16))
    images = load(tmp_path, resize=resize)
    assert images.images.shape == (2, 8, 8, 3)
    assert_close(images.images, RED)


def test_images_on_disk_equal_images_in_memory(tmp_path, monkeypatch):
    for i in range(5):
        noise = np.random.default_rng(i).integers(0, 256, (12, 9, 3), np.uint8)
        save(tmp_path / f"class{i % 2}" / f"{i}.png", Image.fromarray(noise))
    in_memory = load(tmp_path)
    monkeypatch.setattr(loading, "IN_MEMORY_BYTES", 0)
    on_disk = load(tmp_path)
    assert isinstance(on_disk, OnDisk)
    indices = np.array([3, 0, 4])
    for name, values in in_memory.read(indices).items():
        np.testing.assert_array_equal(on_disk.read(indices)[name], values)


def test_a_missing_folder_a_file_and_a_folder_without_images_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone does not exist or is locked: check the path"):
        load(tmp_path / "gone")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(FileNotFoundError, match=r"No images under .* \(only 1 \.txt\): give"):
        load(tmp_path)
    with pytest.raises(ValueError, match=r"notes\.txt is a file: give the folder"):
        load(tmp_path / "notes.txt")


as_root = not hasattr(os, "geteuid") or os.geteuid() == 0


@pytest.mark.skipif(as_root, reason="root reads every folder")
def test_a_locked_folder_is_an_error(tmp_path):
    save_solid(tmp_path / "a.png", 0)
    (tmp_path / "locked").mkdir(mode=0)
    with pytest.raises(ValueError, match=r"Cannot list the folder .*locked.*make it readable"):
        load(tmp_path)


def write_text(path):
    path.write_text("<html>404</html>")


def write_truncated(path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:3000])


@pytest.mark.parametrize(
    ("name", "write", "cause"),
    [
        ("empty.png", lambda path: path.write_bytes(b""), "not in a format that Pillow knows"),
        ("text.jpg", write_text, "not in a format that Pillow knows"),
        ("cut.jpg", write_truncated, "truncated"),
        ("cut.png", write_truncated, "truncated"),
        ("cut.webp", write_truncated, ""),
        ("float.tif", lambda path: Image.new("F", (8, 8), 0.5).save(path), "mode F from 0.5 to"),
        ("dangling.png", lambda path: path.symlink_to("nowhere.png"), "No such file"),
    ],
)
def test_an_unreadable_image_is_named_with_cause_and_remedy(tmp_path, name, write, cause):
    save_solid(tmp_path / "fine.png", 0)
    write(tmp_path / name)
    message = rf"Cannot read the image .*{name} \(.*{cause}.*\): replace or remove it\.$"
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_image_above_the_limit_is_named_with_the_setting_of_the_limit(tmp_path):
    save_solid(tmp_path / "large.png", 0, size=(30, 20))
    message = (
        r"Cannot read the image .*large\.png \(30x20 is above 599 pixels\): "
        r"raise --data\.max-pixels, or replace or remove it\.$"
    )
    with pytest.raises(ValueError, match=message):
        load(tmp_path, max_pixels=599)
    assert_close(only(load(tmp_path, max_pixels=600)), 0)


def test_the_limit_may_be_above_that_of_pillow(tmp_path, monkeypatch):
    for module, name in ((Image, "MAX_IMAGE_PIXELS"), (decode, "MAX_PIXELS")):
        monkeypatch.setattr(module, name, 200)
    save_solid(tmp_path / "large.png", 90, size=(30, 20))
    # Pillow refuses more than twice its own limit before the size is known.
    with pytest.raises(ValueError, match=r"large\.png \(.*pixels.*\): raise --data\.max-pixels"):
        load(tmp_path, max_pixels=200)
    assert_close(only(load(tmp_path, max_pixels=600)), 90)
    assert Image.MAX_IMAGE_PIXELS == 600
