"""Read the images that are compared: a folder of image files, or an .npz with `images`."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ddpm_jax.data import DataSource, ImageSet
from ddpm_jax.data.decode import convert_file, upright_size
from ddpm_jax.data.folder import Folder, find_root, image_names
from ddpm_jax.data.loading import InMemory
from ddpm_jax.errors import check, one_line

IMAGES_PER_READ = 1024
ALL_FOLDERS = "."
"""The split that reads all subfolders, whatever their names."""
CROP = DataSource()
"""The settings of a data source by default."""
READ_WITH = ("resize", "max_pixels", "max_corrupt_fraction")
"""Settings of a data source with which the files of a reference are read."""

GREY_MODES = {"1", "L", "LA"}
"""Pillow's modes of greyscale images of 8 bits or less. Those of more begin with I."""


def read_samples(path: Path) -> ImageSet:
    """Read images of one size, without resizing them. Raise ValueError or FileNotFoundError."""
    if path.suffix.lower() == ".npz":
        return InMemory(read_npz(path))
    root = find_root(path, ALL_FOLDERS)
    headers = [_header(root / name) for name in image_names(root)]
    sizes = {size for size, _ in headers}
    modes = {mode for _, mode in headers}
    shown = ", ".join(f"{width}x{height}" for width, height in sorted(sizes)[:3])
    width, height = next(iter(sizes))
    check(
        len(sizes) == 1,
        f"The images of {path} are not of one size ({shown}): resize them to one size, with the "
        "filter used for the results that you compare with.",
    )
    is_grey = all(mode in GREY_MODES or mode.startswith("I") for mode in modes)
    return Folder(path=str(path), split=ALL_FOLDERS).load((height, width), 1 if is_grey else 3)


def read_reference(
    path: Path, shape: tuple[int, int, int], split: str | None = None, like: DataSource = CROP
) -> ImageSet:
    """Read images of the samples' `shape` (h, w, c).

    The files of a folder are read and resized with the settings `like` those of training. Raise
    ValueError or FileNotFoundError, and ValueError for an array of another shape.
    """
    if path.suffix.lower() == ".npz":
        check(split is None, f"{path} is an array without splits: leave out --split.")
        images = read_npz(path)
        check(
            images.shape[1:] == shape,
            f"The images of {path} are {_size(images.shape[1:])}, and the samples {_size(shape)}: "
            "resize one of them, with the filter used for the results that you compare with.",
        )
        return InMemory(images)
    height, width, channels = shape
    check(
        channels in (1, 3),
        f"Samples of {channels} channels cannot be compared with image files: give {path} as an "
        ".npz.",
    )
    shared = {name: getattr(like, name) for name in READ_WITH}
    return Folder(path=str(path), split=split, **shared).load((height, width), channels)


def read_npz(path: Path) -> np.ndarray:
    """The uint8 array `images` (n, h, w, c). Raise ValueError or FileNotFoundError."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images = arrays["images"]
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no file {path}: check the path.") from None
    except MemoryError:
        raise
    # A damaged file, another compression or an array alone raises errors of many types.
    except Exception as error:
        cause = one_line(error)
        raise ValueError(
            f"Cannot read {path} ({cause}): give an .npz with an array `images`."
        ) from error
    check(
        images.dtype == np.uint8 and images.ndim == 4 and 0 not in images.shape,
        f"`images` of {path} is {images.dtype} {images.shape}: give uint8 (n, h, w, c).",
    )
    return images


def blocks(images: ImageSet, size: int = IMAGES_PER_READ) -> Iterator[np.ndarray]:
    """Yield all images in order, `size` at a time."""
    for start in range(0, len(images), size):
        yield images.read(np.arange(start, min(start + size, len(images))))["image"]


def digest(images: ImageSet) -> str:
    """A short hash of the sizes and pixels of all images, in order."""
    state = hashlib.sha256()
    for block in blocks(images):
        state.update(f"{block.shape}".encode())
        state.update(np.ascontiguousarray(block).data)
    return state.hexdigest()[:16]


def _header(file: Path) -> tuple[tuple[int, int], str]:
    """The upright size and the mode of an image file. Raise ValueError if it is none."""
    try:
        return convert_file(file, lambda image: (upright_size(image), image.mode))
    # PIL raises many types: OSError, SyntaxError, DecompressionBombError, ...
    except Exception as error:
        raise ValueError(
            f"Cannot read the image {file} ({error}): replace or remove it."
        ) from error


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
