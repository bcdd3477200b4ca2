"""Files appear whole or not at all, and names do not take another's place."""

import pytest

from ddpm_jax.files import atomic_file, free_name, sync


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "x"
    with atomic_file(path) as file:
        file.write(b"first")
        assert not path.exists()
    with pytest.raises(RuntimeError, match="full"), atomic_file(path) as file:
        file.write(b"second")
        raise RuntimeError("disk full")
    assert path.read_bytes() == b"first"
    assert list(path.parent.iterdir()) == [path]


def test_a_free_name_counts_on(tmp_path):
    for wanted in ("a-1.txt", "a-2.txt"):
        name = free_name(tmp_path / "a.txt")
        assert name == tmp_path / wanted
        name.touch()


def test_files_and_folders_can_be_synced(tmp_path):
    (tmp_path / "x").touch()
    sync(tmp_path / "x")
    sync(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync(tmp_path / "y")
