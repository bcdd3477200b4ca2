"""A manifest stands for all files of its folder: every kind of damage to any of them is found."""

from pathlib import Path

import pytest

from ddpm_jax.runs import manifest

FILES = {"a": b"one", "deep/er/b": bytes(range(16)), "empty": b""}


def fill(folder):
    """The folder with FILES in it, and their manifest."""
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    manifest.write(folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    return fill(tmp_path / "folder")


def test_a_folder_as_it_was_saved_is_whole(folder):
    assert manifest.find_corruption(folder) is None


def test_every_flipped_bit_is_found(folder):
    for path in [*(folder / name for name in FILES), folder / manifest.NAME]:
        content = path.read_bytes()
        for bit in range(8 * len(content)):
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            assert manifest.find_corruption(folder) is not None, (path, bit)
        path.write_bytes(content)
    assert manifest.find_corruption(folder) is None


def test_every_length_but_the_whole_one_is_found(folder):
    for path in [*(folder / name for name in FILES), folder / manifest.NAME]:
        content = path.read_bytes()
        for other in [*(content[:length] for length in range(len(content))), content + b"\0"]:
            path.write_bytes(other)
            assert manifest.find_corruption(folder) is not None, (path, len(other))
        path.write_bytes(content)


def replace(path, make):
    """Put something else in the place of a file."""
    path.unlink()
    make(path)


def test_what_is_wrong_is_named(tmp_path):
    cases = {
        "deep/er/b is missing": lambda folder: (folder / "deep/er/b").unlink(),
        "a is not as it was saved": lambda folder: (folder / "a").write_bytes(b"two"),
        "new is not in manifest.json": lambda folder: (folder / "new").write_bytes(b""),
        "it has no manifest.json": lambda folder: (folder / manifest.NAME).unlink(),
        "manifest.json is not as it": lambda folder: (folder / manifest.NAME).write_text("[]\n"),
        "manifest.json is not as": lambda folder: (folder / manifest.NAME).write_text('{"a": 1}'),
        "a is missing": lambda folder: replace(folder / "a", Path.mkdir),
        "it cannot be read (": lambda folder: replace(folder / "a", lambda a: a.symlink_to("no")),
    }
    for number, (words, harm) in enumerate(cases.items()):
        folder = fill(tmp_path / str(number))
        harm(folder)
        assert words in manifest.find_corruption(folder)


def test_a_folder_without_a_manifest_or_without_being_there_is_not_whole(tmp_path):
    (tmp_path / "a").write_bytes(b"one")
    assert "manifest.json" in manifest.find_corruption(tmp_path)
    assert manifest.find_corruption(tmp_path / "nowhere") is not None
