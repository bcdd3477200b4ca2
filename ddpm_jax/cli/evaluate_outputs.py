"""The table, the JSON file and the pictures of an evaluation."""

import contextlib
import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ddpm_jax.evaluation.results import merged, numbers_of, read_result, table
from ddpm_jax.files import atomic_file, check_writable, write_all
from ddpm_jax.version import VERSION

PICTURES = ("nearest.png", "bits.png")
Outputs = dict[str, Callable[[Path], object]]
"""{end of a picture's name: what writes it}."""
Part = tuple[dict[str, Any], Outputs]
"""Numbers, how they were made, and their pictures."""


def picture_path(out: Path, name: str) -> Path:
    """The path of a picture beside the JSON file, such as x_nearest.png beside x.json."""
    return out.with_name(f"{out.stem}_{name}")


def check_outputs(out: Path | None) -> None:
    """Raise OSError if the JSON and the pictures beside it cannot be written."""
    if out is not None:
        for path in (out, *(picture_path(out, name) for name in PICTURES)):
            check_writable(path)


def report(result: dict[str, Any], parts: Iterable[Part], out: Path | None) -> None:
    """Measure `parts` one by one, write each at once if `out` is given, and print all as a table.

    An error of one part loses none of those before it.
    """
    result = result | {"version": VERSION}
    written: list[Path] = []
    try:
        for numbers, pictures in parts:
            result |= numbers
            if out is not None and numbers_of(numbers):
                written += save(result, out, pictures, written)
    finally:
        if numbers_of(result):
            print(table(result), *dict.fromkeys(written), sep="\n")


def save(
    result: dict[str, Any], out: Path, pictures: Outputs, written: Sequence[Path] = ()
) -> list[Path]:
    """Write a result and its pictures, and return their paths.

    Numbers and pictures of an earlier result stay if they were made in the same way. The pictures
    `written` before are of this result.
    """
    whole = merged(_earlier(out), result)
    if whole is None:
        for path in {picture_path(out, name) for name in PICTURES}.difference(written):
            with contextlib.suppress(OSError):
                path.unlink()
    paths = {picture_path(out, name): write for name, write in pictures.items()}
    return write_all({out: partial(write_json, whole or result), **paths})


def _earlier(out: Path) -> dict[str, Any]:
    """The result in a file; empty if there is none."""
    try:
        return read_result(out)
    except (ValueError, FileNotFoundError):
        return {}


def write_json(result: dict[str, Any], path: Path) -> None:
    """Write a result."""
    with atomic_file(path) as file:
        file.write((json.dumps(result, indent=2) + "\n").encode())
