"""The table, the JSON file and the pictures of an evaluation."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ddpm_jax.evaluation.results import table
from ddpm_jax.files import atomic_file, check_writable, write_all
from ddpm_jax.version import VERSION

PICTURES = ("nearest.png", "bits.png")
Outputs = dict[str, Callable[[Path], object]]
"""{end of a picture's name: what writes it}."""


def picture_path(out: Path, name: str) -> Path:
    """The path of a picture beside the JSON file, such as x_nearest.png beside x.json."""
    return out.with_name(f"{out.stem}_{name}")


def check_outputs(out: Path | None) -> None:
    """Raise OSError if the JSON and the pictures beside it cannot be written."""
    if out is not None:
        for path in (out, *(picture_path(out, name) for name in PICTURES)):
            check_writable(path)


def finish(result: dict[str, Any], out: Path | None, outputs: Outputs) -> None:
    """Print the table, and write the JSON and the pictures if `out` is given."""
    result |= {"version": VERSION}
    print(table(result))
    if out is None:
        return
    pictures = {picture_path(out, name): write for name, write in outputs.items()}
    for path in write_all({out: partial(write_json, result), **pictures}):
        print(path)


def write_json(result: dict[str, Any], path: Path) -> None:
    """Write a result."""
    with atomic_file(path) as file:
        file.write((json.dumps(result, indent=2) + "\n").encode())
