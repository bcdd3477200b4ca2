"""Files of a folder that may come from anywhere: JSON within limits, and no way out of the folder."""

import json
import os
from pathlib import Path
from typing import Any

from ddpm_jax.errors import check

MAX_JSON_BYTES = 2 * 2**20
MAX_NAME_LENGTH = 80


def brief(text: object) -> str:
    """What a file says, as one line of an error can show it."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(text)[:200])


def inside(folder: Path, path: Path) -> Path:
    """The path, which must lie in the folder or, for one in the cache of the hub, in its repository's; else ValueError.

    Links are followed: the cache keeps files as links into the `blobs` of the repository, and those as links into the
    `blobs` of the whole cache.
    """
    check(path.exists() or not path.is_symlink(), f"{path} is a link that leads nowhere")
    root, real = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    repositories = [parent for parent in root.parents if parent.name.startswith("models--")][:1]
    blobs = [
        place / "blobs" for repository in repositories for place in (repository, repository.parent)
    ]
    allowed = any(real.is_relative_to(place) for place in (root, *blobs))
    check(allowed, f"{path} lies outside {folder}: it is not read")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises ValueError for anything else, or more than 2 MiB."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, or no file")
    size = path.stat().st_size
    check(
        size <= MAX_JSON_BYTES,
        f"{path} is {size:,} bytes: no JSON of a model is over {MAX_JSON_BYTES:,}",
    )
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    check(isinstance(value, dict), f"{path} does not hold a JSON object")
    names = [*value, value.get("_class_name", "")]
    known = all(
        isinstance(name, str) and len(name) <= MAX_NAME_LENGTH and name.isprintable()
        for name in names
    )
    check(known, f"{path} has a key or a _class_name that no model has")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes as diffusers does: sorted, indented by 2, with a last newline."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
