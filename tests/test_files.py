"""Files are complete or absent, and free names belong to no other file."""

import os
import tempfile

import pytest

from ddpm_jax.files import (
    atomic_file,
    check_name,
    check_writable,
    free_name,
    sync,
    write_all,
)


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


def test_two_writers_of_one_path_do_not_share_a_temporary_file(tmp_path):
    """Processes of two containers may have the same id."""
    with atomic_file(tmp_path / "x") as first, atomic_file(tmp_path / "x") as second:
        first.write(b"first")
        second.write(b"other")
    assert (tmp_path / "x").read_bytes() == b"first"


def test_a_path_that_cannot_be_written_is_found_before_it_is_written(tmp_path):
    (tmp_path / "file").touch()
    check_writable(tmp_path / "file")
    check_writable(tmp_path / "new" / "file")
    assert list((tmp_path / "new").iterdir()) == []
    for path in (tmp_path / "file" / "x", tmp_path / ("x" * 255)):
        with pytest.raises(OSError, match=r"cannot be written \(.+\): choose another path"):
            check_writable(path)
    with pytest.raises(IsADirectoryError, match="is a directory"):
        check_writable(tmp_path / "new")


def test_a_failed_output_is_written_elsewhere_and_stops_no_other(tmp_path, monkeypatch):
    elsewhere = tmp_path / "temporary"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    (tmp_path / "file").touch()
    blocked = tmp_path / "file" / "a"
    paths = [tmp_path / "b", blocked, tmp_path / "c"]
    outputs = {path: lambda path: path.write_text(path.name) for path in paths}
    with pytest.raises(OSError, match="Not everything was written as asked") as error:
        write_all(outputs)
    assert [path.read_text() for path in (paths[0], paths[2])] == ["b", "c"]
    (rescued,) = elsewhere.rglob("a")
    assert rescued.read_text() == "a"
    assert f"{blocked} (Not a directory), written to {rescued} instead" in str(error.value)
    del outputs[blocked]
    assert write_all(outputs) == [paths[0], paths[2]]


def test_a_name_that_is_not_utf8_is_an_error_that_says_so(tmp_path):
    check_name(tmp_path / "r\u00fcn")
    with pytest.raises(ValueError, match=r"is not UTF-8, or .*: set PYTHONUTF8=1"):
        check_name(tmp_path / os.fsdecode(b"r\xfcn"))


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
