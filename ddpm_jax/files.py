"""Write files atomically, flush them to disk where that is asked for, and choose their names."""

import contextlib
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a binary file that replaces `path` when the block ends without an exception.

    If the block raises or the process is killed, `path` stays as it was. Missing folders are
    created.
    """
    with _temporary_file(Path(path)) as file:
        yield file
        file.close()
        os.replace(file.name, path)


@contextmanager
def _temporary_file(path: Path) -> Iterator[BinaryIO]:
    """Open a new file beside `path`. Remove it after the block, unless it was renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Processes of two containers may have the same id and write to the same folder.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
    finally:
        temporary.unlink(missing_ok=True)


def probe(path: Path) -> None:
    """Create and remove the temporary file of `atomic_file`, or raise the OSError of the system."""
    with _temporary_file(path):
        pass


def check_writable(path: Path) -> None:
    """Raise OSError if `atomic_file` cannot write `path`. Missing folders are created.

    Call this before a long computation.
    """
    if path.is_dir():
        raise IsADirectoryError(f"The output {path} is a directory: give the name of a file.")
    try:
        probe(path)
    except OSError as error:
        raise OSError(
            f"{path} cannot be written ({error.strerror}): choose another path, or allow writing "
            "to its folder."
        ) from error


def write_all(outputs: Mapping[Path, Callable[[Path], object]]) -> list[Path]:
    """Call each function with its path, which it writes, and return the paths.

    A function that fails stops none of the others, and is called again with a path in another
    folder, so that no result is lost. Then raise OSError that names all such paths.
    """
    failures = []
    for path, write in outputs.items():
        try:
            write(path)
        # Whatever fails, the other outputs may still be written.
        except Exception as error:
            rescued = _write_elsewhere(path.name, write)
            place = f"written to {rescued} instead" if rescued else "and no other folder took it"
            failures.append(f"{path} ({getattr(error, 'strerror', None) or error}), {place}")
    if failures:
        raise OSError(f"Not everything was written as asked: {'; '.join(failures)}.")
    return list(outputs)


def _write_elsewhere(name: str, write: Callable[[Path], object]) -> Path | None:
    """Write to a new folder for temporary files, in memory or below the current directory.

    Return the path, or None if all of them fail.
    """
    for parent in (None, "/dev/shm", "."):
        with contextlib.suppress(Exception):
            path = Path(tempfile.mkdtemp(prefix="ddpm_jax-", dir=parent)).resolve() / name
            write(path)
            return path
    return None


def check_name(path: Path) -> None:
    """Raise ValueError if the full name of `path` is not UTF-8, which checkpoints need.

    Without a UTF-8 locale no name beyond ASCII is.
    """
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"The name of {path.absolute()} is not UTF-8, or this process has another locale: "
            "set PYTHONUTF8=1, or choose another directory."
        ) from None
    except FileNotFoundError:
        raise FileNotFoundError(
            f"The current directory was deleted: change to another one, or give {path} in full."
        ) from None


def sync(path: Path) -> None:
    """Block until a file, or the names in a folder, are on disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_name(path: Path) -> Path:
    """The first unused path with -1, -2, ... before the suffix of `path`."""
    number = 1
    while (name := path.with_stem(f"{path.stem}-{number}")).exists():
        number += 1
    return name
