"""Images from a folder of image files, in any mixture of sizes, modes and formats."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image, ImageFile

from ddpm_jax import home
from ddpm_jax.data import SPLITS, DataSource, ImageSet
from ddpm_jax.data.captions import METADATA, check_caption, folder_captions
from ddpm_jax.data.loading import load_or_stream
from ddpm_jax.image_size import ImageSize, sides

NO_SUFFIX = "without suffix"
MOST_KINDS = 10
"""Number of kinds of skipped files to name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folder(DataSource):
    """The image files of a folder and its subfolders, in every format that Pillow reads.

    Other files, and hidden ones, are skipped and counted. The first frame of an animation is used.
    If every image is in a direct subfolder, the subfolders are the classes, in natural order: 1, 2,
    10.
    """

    path: str
    """Folder of the images."""
    split: str | None = None
    """Subfolder to read, such as train. A dot reads a folder whose train and test are classes."""
    caption_column: str | None = None
    """Key of the captions in the folder's metadata.jsonl, such as text; None for no captions."""

    def describe(self) -> str:
        split = f", split {self.split}" if self.split else ""
        return f"folder: {self.path}{split}"

    def load(self, image_size: ImageSize, channels: int) -> ImageSet:
        root = find_root(home.expand(self.path), self.split)
        names = image_names(root)
        classes = class_names(names)
        captions = None
        if self.caption_column is not None:
            captions = folder_captions(root, names, self.caption_column)

        def decode(i: int) -> np.ndarray:
            file = root / names[i]
            check_caption(captions, i, str(file))
            return self.decode(file, str(file), image_size, channels)

        return load_or_stream(
            len(names),
            decode,
            folder_labels(names, classes),
            math.prod(sides(image_size)) * channels,
            self.describe(),
            self.max_corrupt_fraction,
            classes,
            captions,
        )


def find_root(path: Path, split: str | None) -> Path:
    """The folder of a split, or `path` itself if `split` is None.

    Raise ValueError for a folder with splits if none is chosen, and FileNotFoundError for a folder
    that does not exist.
    """
    # Path.exists would raise if a parent folder is locked.
    if not os.path.exists(path):
        raise FileNotFoundError(f"The folder {path} does not exist or is locked: check the path.")
    if not path.is_dir():
        raise ValueError(f"{path} is a file: give the folder that holds the images.")
    if split is not None and (path / split).is_dir():
        return path / split
    subfolders = sorted(entry.name for entry in path.glob("*/") if not entry.name.startswith("."))
    if split is not None:
        raise FileNotFoundError(
            f"There is no folder {split} in {path}: choose --data.split among "
            f"{', '.join(subfolders) or 'its subfolders, of which there are none'}."
        )
    splits = [name for name in subfolders if name.lower() in SPLITS]
    if splits:
        raise ValueError(
            f"{path} holds the splits {', '.join(splits)}: choose one by --data.split, "
            "or give --data.split . if they are classes."
        )
    return path


def image_names(root: Path) -> list[str]:
    """The image files under `root` that Pillow reads, as `file_names` lists them."""
    return file_names(root, readable_suffixes(), "files that Pillow reads, such as .png or .jpg")


def file_names(root: Path, suffixes: set[str], expected: str) -> list[str]:
    """The sorted paths of all files under `root` with these suffixes, relative to it and with '/'.

    Their order is the same on every file system. Print to stderr how many files of which kinds are
    left out. Raise FileNotFoundError, which says what is `expected`, if there are no such files.
    """
    files = [
        (folder / name).relative_to(root).as_posix()
        for folder, names in list_files(root)
        for name in names
        if name != METADATA
    ]
    kinds = {file: kind_of(file) for file in files}
    names = sorted(file for file, kind in kinds.items() if kind in suffixes)
    left_out = describe_kinds([kind for kind in kinds.values() if kind not in suffixes])
    if not names:
        raise FileNotFoundError(
            f"No images under {root} (only {left_out or 'folders'}): give a folder of {expected}."
        )
    if left_out:
        print(f"Left out of {root}: {left_out}.", file=sys.stderr)
    return names


def readable_suffixes() -> set[str]:
    """The suffixes of the formats that Pillow can decode, among them those of its plugins."""
    formats = Image.registered_extensions()
    return {suffix for suffix, name in formats.items() if name in Image.OPEN and _decodes(name)}


def _decodes(image_format: str) -> bool:
    """Whether Pillow decodes a format, not only recognizes it."""
    factory = Image.OPEN[image_format][0]
    is_stub = isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)
    return not is_stub and image_format != "MPEG"


def kind_of(name: str) -> str:
    """The suffix of a file in lower case, or "hidden" or NO_SUFFIX."""
    base = os.path.basename(name)
    return "hidden" if base.startswith(".") else os.path.splitext(base)[1].lower() or NO_SUFFIX


def describe_kinds(kinds: list[str]) -> str:
    """The counts of kinds of files, such as "3 .heic, 1 hidden", the most frequent first."""
    shown = Counter(kinds).most_common(MOST_KINDS)
    others = len(kinds) - sum(count for _, count in shown)
    parts = [f"{count:,} {kind}" for kind, count in shown]
    return ", ".join([*parts, f"{others:,} others"] if others else parts)


def list_files(root: Path) -> list[tuple[Path, list[str]]]:
    """Pairs (folder, file names) of `root` and all its subfolders.

    Links are followed. A hidden subfolder counts as a hidden file. Raise ValueError for a folder
    that cannot be listed, and for a link to a folder that is listed already.
    """
    listing = []
    seen = set()
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=_raise_unreadable):
        target = os.path.realpath(folder)
        # A link to one of its own parent folders would repeat the images dozens of times.
        if target in seen:
            raise ValueError(
                f"{folder} leads to {target}, which is listed already: remove the link."
            )
        seen.add(target)
        hidden = [name for name in subfolders if name.startswith(".")]
        # os.walk visits the subfolders that stay in this list.
        subfolders[:] = [name for name in subfolders if name not in hidden]
        listing.append((Path(folder), files + hidden))
    return listing


def _raise_unreadable(error: OSError) -> NoReturn:
    raise ValueError(
        f"Cannot list the folder {error.filename} ({error.strerror}): make it readable."
    ) from error


def class_names(names: list[str]) -> tuple[str, ...] | None:
    """The folders of the images in natural order, unless some image is in no direct subfolder."""
    outside = next((name for name in names if name.count("/") != 1), None)
    if outside is None:
        return tuple(sorted({name.partition("/")[0] for name in names}, key=natural_key))
    if any("/" in name for name in names):
        print(
            f"The folders are no classes, because {outside} is in no direct subfolder.",
            file=sys.stderr,
        )
    return None


def natural_key(name: str) -> tuple[list[int | str], str]:
    """A key for sorting by which the numbers in names are compared as numbers: 1, 2, 10."""
    # The parts at odd places are the numbers.
    parts = [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
    return parts, name


def folder_labels(names: list[str], classes: tuple[str, ...] | None) -> np.ndarray | None:
    """The labels as int32 (n,): the index of each image's folder in `classes`, if there are any."""
    if classes is None:
        return None
    numbers = {name: number for number, name in enumerate(classes)}
    return np.array([numbers[name.partition("/")[0]] for name in names], np.int32)
