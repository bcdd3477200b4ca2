"""Captions of images: the text of each one, and the error for an image without one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

METADATA = "metadata.jsonl"
"""The file that a folder of captioned images has: an object with file_name a line."""
Captions = Sequence[str | None]


def check_caption(captions: Captions | None, i: int, name: str) -> None:
    """Raise ValueError if images are to have captions, and image i, called `name`, has none."""
    if captions is not None and captions[i] is None:
        raise ValueError(f"The image {name} has no caption: add one, or remove the image.")


def folder_captions(root: Path, names: Sequence[str], column: str) -> list[str | None]:
    """The captions of image files under `root`, from METADATA; None for an image without one.

    Raise FileNotFoundError if there is no such file, and ValueError if it cannot be read.
    """
    path = root / METADATA
    if not path.is_file():
        raise FileNotFoundError(
            f"There are no captions in {root}: add {METADATA}, an object with file_name and "
            f"{column} a line, or set --data.caption-column None."
        )
    try:
        # Not by `splitlines`: a caption may contain the line separator of Unicode.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
        rows = [json.loads(line) for line in lines if line.strip()]
        captions = {str(row["file_name"]): row.get(column) for row in rows}
    # A line may be any JSON.
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"Cannot read {path} ({type(error).__name__}: {error}): each line must be a JSON "
            "object with file_name."
        ) from error
    if not any(is_caption(caption) for caption in captions.values()):
        keys = sorted({key for row in rows for key in row} - {"file_name"})
        remedy = f"choose --data.caption-column among {', '.join(keys)}"
        raise ValueError(
            f"{path} has no captions {column!r}: {remedy if keys else 'add them to its lines'}."
        )
    return only_texts([captions.get(name) for name in names])


def only_texts(values: Sequence[object]) -> list[str | None]:
    """The values that are captions, and None for each other one."""
    return [value if isinstance(value, str) and is_caption(value) else None for value in values]


def is_caption(value: object) -> bool:
    """Whether a value is a text that is more than white space."""
    return isinstance(value, str) and bool(value.strip())
