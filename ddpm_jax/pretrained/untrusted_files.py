"""Read the files of an untrusted folder: JSON of limited size, and no path out of the folder.

`torch_pickle` has the limits of pickles, `json_settings` those of networks.
"""

import json
import os
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 2 * 2**20
MAX_NAME_LENGTH = 80  # characters


def brief(text: object) -> str:
    """The first 200 characters of a text, with "?" for unprintable ones, to show in an error."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(text)[:200])


def is_printable(value: object, limit: int) -> bool:
    """Whether a value is a printable string of at most `limit` characters."""
    return isinstance(value, str) and len(value) <= limit and value.isprintable()


def inside(folder: Path, path: Path) -> Path:
    """Return the path. Raise ValueError if it leads out of the folder.

    Links are followed. In the hub's cache, files are links into `blobs` of the repository, which
    may in turn be links into `blobs` of the whole cache; both are allowed.
    """
    if not path.exists() and path.is_symlink():
        raise ValueError(f"{path} is a broken link: it is not read.")
    root = Path(os.path.realpath(folder))
    target = Path(os.path.realpath(path))
    repositories = [parent for parent in root.parents if parent.name.startswith("models--")]
    roots = [root]
    if repositories:
        roots += [repositories[0] / "blobs", repositories[0].parent / "blobs"]
    allowed = any(target.is_relative_to(parent) for parent in roots)
    if not allowed:
        raise ValueError(f"{path} lies outside {folder}: it is not read.")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file of at most 2 MiB. Raise FileNotFoundError or ValueError."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing or is not a file.")
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        limit = f"the limit of a JSON file is {MAX_JSON_BYTES:,} bytes"
        raise ValueError(f"{path} has {size:,} bytes: {limit}.")
    value = parse_json(path.read_bytes(), str(path))
    names = [*value, value.get("_class_name", "")]
    if not all(is_printable(name, MAX_NAME_LENGTH) for name in names):
        limit = f"a printable string of at most {MAX_NAME_LENGTH} characters"
        raise ValueError(f"{path} has a key or _class_name that is not {limit}.")
    return value


def parse_json(text: str | bytes, source: str) -> dict[str, Any]:
    """Read a JSON object. Raise ValueError, which names `source`, for anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{source} does not hold a JSON object.")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write JSON as diffusers does: sorted keys, indented by 2, with a newline at the end."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
