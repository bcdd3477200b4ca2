"""A list of a folder's files with a hash for each, written last: a folder is whole where its manifest stands."""

import hashlib
import json
from pathlib import Path

from ddpm_jax.files import sync

NAME = "manifest.json"


def write(folder: Path) -> None:
    """Has every file of the folder on disk, then the manifest; a crash at any moment leaves all of it or none."""
    hashes = {name: _hash(path) for name, path in _files(folder).items()}
    for path in [*_files(folder).values(), *(path for path in folder.rglob("*") if path.is_dir())]:
        sync(path)
    unfinished = folder / f".{NAME}"
    unfinished.write_text(_text(hashes))
    sync(unfinished)
    unfinished.rename(folder / NAME)
    sync(folder)


def find_corruption(folder: Path) -> str | None:
    """What is wrong with the folder in some words, None if every file is as the manifest says."""
    if not (folder / NAME).is_file():
        return f"it has no {NAME}: its save was cut off, or the file was removed"
    try:
        text = (folder / NAME).read_text()
        hashes = json.loads(text)
        if not isinstance(hashes, dict) or text != _text(hashes):
            return f"{NAME} is not as it was saved"
        found = _files(folder)
        for name in sorted({*hashes, *found}):
            if name not in found:
                return f"{name} is missing"
            if name not in hashes:
                return f"{name} is not in {NAME}"
            if _hash(found[name]) != hashes[name]:
                return f"{name} is not as it was saved"
    except (OSError, ValueError) as error:
        return f"it cannot be read ({error})"
    return None


def _text(hashes: dict) -> str:
    return json.dumps(hashes, indent=1, sort_keys=True) + "\n"


def _files(folder: Path) -> dict[str, Path]:
    """All files but the manifest, by their names from the folder on."""
    files = (path for path in sorted(folder.rglob("*")) if not path.is_dir())
    return {path.relative_to(folder).as_posix(): path for path in files if path != folder / NAME}


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
