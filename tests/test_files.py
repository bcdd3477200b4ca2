"""Files are complete or absent, and free names belong to no other file."""

import pytest

from ddpm_jax.files import atomic_file, free_name, sync


def test_an_atomic_file_is_complete_or_absent(tmp_path):
    path = tmp_path / "deep" / "x"
    with atomic_file(path) as file:
        file.write(b"first")
        assert not path.exists()
    with pytest.raises(RuntimeError, match="full"), atomic_file(path) as file:
        file.write(b"second")
        raise RuntimeError("disk full")
    assert path.read_bytes() == b"first"
    assert list(path.parent.iterdir()) == [path]


def test_free_names_are_numbered(tmp_path):
    for expected in ("a-1.txt", "a-2.txt"):
        path = free_name(tmp_path / "a.txt")
        assert path == tmp_path / expected
        path.touch()


def test_files_and_folders_can_be_synced(tmp_path):
    (tmp_path / "x").touch()
    sync(tmp_path / "x")
    sync(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync(tmp_path / "y")
