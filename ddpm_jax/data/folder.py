"""Images from a folder of image files, in any mixture of sizes, modes and formats."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import NoReturn

import numpy as np

from ddpm_jax.data import DataSource, ImageSet, load_or_stream
from ddpm_jax.data.decode import decode_image

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folder(DataSource):
    """The image files of a folder and the folders in it.

    Files with another suffix and names that start with a dot are left out; of an animation the first frame is taken.
    Where every image lies in a direct sub-folder, the sub-folders, sorted by name, are the classes.
    """

    path: str
    """The folder."""

    def describe(self) -> str:
        return f"folder: {self.path}"

    def load(self, image_size: int, channels: int) -> ImageSet:
        root = Path(self.path).expanduser()
        names = image_names(root)

        def decode(i: int) -> np.ndarray:
            file = root / names[i]
            return decode_image(file, str(file), image_size, channels, self.resize)

        size = image_size**2 * channels
        return load_or_stream(
            len(names),
            decode,
            folder_labels(names),
            size,
            self.describe(),
            self.max_corrupt_fraction,
        )


def image_names(root: Path) -> list[str]:
    """Paths of all image files under `root`, relative to it, with '/' and sorted, so equal on every file system."""
    if not os.path.exists(root):  # where a folder above is locked, Path.exists raises
        raise FileNotFoundError(f"the folder {root} does not exist or is locked: check the path")
    if not root.is_dir():
        raise ValueError(f"{root} is a file: give the folder that holds the images")
    names = [
        (folder / name).relative_to(root).as_posix()
        for folder, files in list_files(root)
        for name in files
        if not name.startswith(".") and name.lower().endswith(SUFFIXES)
    ]
    if not names:
        raise FileNotFoundError(
            f"no images under {root}: their names have to end in {', '.join(SUFFIXES)}"
        )
    return sorted(names)


def list_files(root: Path) -> list[tuple[Path, list[str]]]:
    """(folder, names of its files) for `root` and all folders in it but hidden ones; links are followed."""
    found, seen = [], set()
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=_refuse):
        real = os.path.realpath(folder)
        if real in seen:  # a link to a folder above it would repeat the images dozens of times
            raise ValueError(f"{folder} leads to {real}, which is listed already: remove the link")
        seen.add(real)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        found.append((Path(folder), files))
    return found


def _refuse(error: OSError) -> NoReturn:
    raise ValueError(
        f"cannot list the folder {error.filename} ({error.strerror}): make it readable"
    ) from error


def folder_labels(names: list[str]) -> np.ndarray | None:
    """int32 (n,): the place of each image's folder among the sorted ones; None unless all lie one level down."""
    parts = [name.split("/") for name in names]
    if any(len(part) != 2 for part in parts):
        return None
    return np.unique([folder for folder, _ in parts], return_inverse=True)[1].astype(np.int32)
