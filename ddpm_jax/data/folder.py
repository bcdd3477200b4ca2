"""Images from a folder of image files, in any mixture of sizes, modes and formats."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import NoReturn

import numpy as np

from ddpm_jax.data import DataSource, ImageSet
from ddpm_jax.data.loading import load_or_stream

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folder(DataSource):
    """The image files of a folder and its subfolders.

    Hidden files, and files without a suffix of `SUFFIXES`, are skipped. The first frame of an
    animation is used. If every image is in a direct subfolder, the subfolders, sorted by name, are
    the classes.
    """

    path: str
    """Folder of the images."""

    def describe(self) -> str:
        return f"folder: {self.path}"

    def load(self, image_size: int, channels: int) -> ImageSet:
        root = Path(self.path).expanduser()
        names = image_names(root)

        def decode(i: int) -> np.ndarray:
            file = root / names[i]
            return self.decode(file, str(file), image_size, channels)

        return load_or_stream(
            len(names),
            decode,
            folder_labels(names),
            image_size**2 * channels,
            self.describe(),
            self.max_corrupt_fraction,
        )


def image_names(root: Path) -> list[str]:
    """The sorted paths of all image files under `root`, relative to it and with '/'.

    Their order is the same on every file system.
    """
    # Path.exists would raise if a parent folder is locked.
    if not os.path.exists(root):
        raise FileNotFoundError(f"The folder {root} does not exist or is locked: check the path.")
    if not root.is_dir():
        raise ValueError(f"{root} is a file: give the folder that holds the images.")
    names = [
        (folder / name).relative_to(root).as_posix()
        for folder, files in list_files(root)
        for name in files
        if not name.startswith(".") and name.lower().endswith(SUFFIXES)
    ]
    if not names:
        raise FileNotFoundError(
            f"No images under {root}: file names must end in {', '.join(SUFFIXES)}."
        )
    return sorted(names)


def list_files(root: Path) -> list[tuple[Path, list[str]]]:
    """Pairs (folder, file names) of `root` and all its subfolders.

    Links are followed and hidden subfolders skipped. Raise ValueError for a folder that cannot be
    listed, and for a link to a folder that is listed already.
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
        # os.walk visits the subfolders that stay in this list.
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        listing.append((Path(folder), files))
    return listing


def _raise_unreadable(error: OSError) -> NoReturn:
    raise ValueError(
        f"Cannot list the folder {error.filename} ({error.strerror}): make it readable."
    ) from error


def folder_labels(names: list[str]) -> np.ndarray | None:
    """The labels as int32 (n,): the index of each image's folder among the sorted folders.

    None unless every image is in a direct subfolder.
    """
    parts = [name.split("/") for name in names]
    if any(len(part) != 2 for part in parts):
        return None
    folders = [folder for folder, _ in parts]
    _, labels = np.unique(folders, return_inverse=True)
    return labels.astype(np.int32)
