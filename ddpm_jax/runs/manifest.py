"""Hash the files of a folder in a manifest, which is written last and so marks a complete save."""

import hashlib
import json
from pathlib import Path

from ddpm_jax.files import sync

NAME = "manifest.json"


def write(folder: Path) -> None:
    """Fsync every file of the folder, then write the manifest atomically.

    After a crash the manifest is either complete, and so is the folder, or absent.
    """
    hashes = {name: _hash(path) for name, path in _files(folder).items()}
    subfolders = [path for path in folder.rglob("*") if path.is_dir()]
    for path in [*_files(folder).values(), *subfolders]:
        sync(path)
    unfinished = folder / f".{NAME}"
    unfinished.write_text(_to_text(hashes))
    sync(unfinished)
    unfinished.rename(folder / NAME)
    sync(folder)


def find_corruption(folder: Path) -> str | None:
    """Describe the first difference between a folder and its manifest; None if there is none."""
    if not (folder / NAME).is_file():
        return f"{NAME} is missing, so the save was cut off or the file was deleted"
    try:
        text = (folder / NAME).read_text()
        hashes = json.loads(text)
        if not isinstance(hashes, dict) or text != _to_text(hashes):
            return f"{NAME} has changed since the save"
        files = _files(folder)
        for name in sorted({*hashes, *files}):
            if name not in files:
                return f"{name} is missing"
            if name not in hashes:
                return f"{name} is not in {NAME}"
            if _hash(files[name]) != hashes[name]:
                return f"{name} has changed since the save"
    except (OSError, ValueError) as error:
        return f"a file cannot be read ({error})"
    return None


def _to_text(hashes: dict) -> str:
    return json.dumps(hashes, indent=1, sort_keys=True) + "\n"


def _files(folder: Path) -> dict[str, Path]:
    """All files but the manifest, by their path relative to the folder."""
    files = (path for path in sorted(folder.rglob("*")) if not path.is_dir())
    return {path.relative_to(folder).as_posix(): path for path in files if path != folder / NAME}


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
