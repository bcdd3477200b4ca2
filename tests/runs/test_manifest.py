"""A manifest reveals every kind of damage to any file of its folder."""

from pathlib import Path

import pytest

from ddpm_jax.runs import manifest

FILES = {"a": b"one", "deep/er/b": bytes(range(16)), "empty": b""}


def fill(folder):
    """Write FILES and their manifest to a folder."""
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    manifest.write(folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    return fill(tmp_path / "folder")


def test_an_unchanged_folder_is_not_corrupt(folder):
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


def test_every_truncated_or_extended_file_is_found(folder):
    for path in [*(folder / name for name in FILES), folder / manifest.NAME]:
        content = path.read_bytes()
        truncated = [content[:length] for length in range(len(content))]
        for changed in [*truncated, content + b"\0"]:
            path.write_bytes(changed)
            assert manifest.find_corruption(folder) is not None, (path, len(changed))
        path.write_bytes(content)


def replace(path, make):
    """Delete a file and create something else under its name."""
    path.unlink()
    make(path)


def test_the_corruption_is_named(tmp_path):
    cases = {
        "deep/er/b is missing": lambda folder: (folder / "deep/er/b").unlink(),
        "a has changed since the save": lambda folder: (folder / "a").write_bytes(b"two"),
        "new is not in manifest.json": lambda folder: (folder / "new").write_bytes(b""),
        "manifest.json is missing": lambda folder: (folder / manifest.NAME).unlink(),
        "manifest.json has changed since": lambda folder: (folder / manifest.NAME).write_text(
            "[]\n"
        ),
        "manifest.json has changed": lambda folder: (folder / manifest.NAME).write_text('{"a": 1}'),
        "a is missing": lambda folder: replace(folder / "a", Path.mkdir),
        "a file cannot be read (": lambda folder: replace(
            folder / "a", lambda a: a.symlink_to("no")
        ),
    }
    for number, (words, damage) in enumerate(cases.items()):
        folder = fill(tmp_path / str(number))
        damage(folder)
        assert words in manifest.find_corruption(folder)


def test_a_missing_manifest_or_folder_counts_as_corrupt(tmp_path):
    (tmp_path / "a").write_bytes(b"one")
    assert "manifest.json" in manifest.find_corruption(tmp_path)
    assert manifest.find_corruption(tmp_path / "nowhere") is not None
