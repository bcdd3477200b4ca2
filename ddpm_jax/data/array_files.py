"""Read images from NumPy's files: .npz, memory-mapped .npy, and folders of .npy."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddpm_jax.data import SPLITS
from ddpm_jax.data.folder import class_names, file_names, folder_labels
from ddpm_jax.data.values import LEVELS, Levels
from ddpm_jax.errors import check, one_line

KEYS = ("images", "labels", "classes")
"""The arrays of an .npz that are always read."""
CONDITIONS = "conditions"
"""The array of an .npz that is read if images are conditioned on it."""
KINDS = "biuf"
"""NumPy's kinds of types that images may have: booleans, integers, floats."""


class Stored(NamedTuple):
    """Arrays on disk. `read(i)` returns image i and its name for messages."""

    path: Path
    size: int
    shape: tuple[int, ...]
    """The shape of one image."""
    dtype: np.dtype
    read: Callable[[int], tuple[np.ndarray, str]]
    labels: np.ndarray | None = None
    classes: tuple[str, ...] | None = None
    conditions: np.ndarray | None = None


def open_stored(path: Path, with_conditions: bool = False) -> Stored:
    """Open an .npz, an .npy or a folder, by default without conditions.

    Raise ValueError or FileNotFoundError.
    """
    if path.is_dir():
        return _open_folder(path)
    keys = (*KEYS, CONDITIONS) if with_conditions else KEYS
    loaded = _load(path, keys)
    if isinstance(loaded, np.ndarray):
        return _open_array(path, loaded, "")
    images = loaded.get("images")
    if images is None:
        raise ValueError(
            f"{path} holds {', '.join(loaded) or 'nothing'}: give an array `images` (n, h, w, c)."
        )
    others = [key for key in loaded if key not in keys]
    if others:
        print(f"Left out of {path}: {', '.join(others)}.", file=sys.stderr)
    stored = _open_array(path, images, "`images` of ")
    labels = _labels(path, loaded.get("labels"), len(images))
    classes = _classes(path, loaded.get("classes"), labels)
    return stored._replace(labels=labels, classes=classes, conditions=loaded.get(CONDITIONS))


def _open_array(path: Path, images: np.ndarray, name: str) -> Stored:
    check(
        images.ndim == 4 and images.dtype.kind in KINDS and 0 not in images.shape,
        f"{name}{path} is {images.dtype} {images.shape}: give floats or integers (n, h, w, c).",
    )

    def read(i: int) -> tuple[np.ndarray, str]:
        return np.asarray(images[i]), f"{i} (from 0) of {path}"

    return Stored(path, len(images), images.shape[1:], images.dtype, read)


def _open_folder(root: Path) -> Stored:
    """Open a folder. Its first sound file decides the shape and the type of all."""
    splits = sorted(path.name for path in root.glob("*/") if path.name.lower() in SPLITS)
    check(
        not splits,
        f"{root} holds the splits {', '.join(splits)}: give one of these folders to --data.path.",
    )
    names = file_names(root, {".npy"}, ".npy files, one array (h, w, c) each")
    path, first = _first_array([root / name for name in names])
    check(
        first.ndim == 3 and first.dtype.kind in KINDS and 0 not in first.shape,
        f"{path} is {first.dtype} {first.shape}: give floats or integers (h, w, c).",
    )

    def read(i: int) -> tuple[np.ndarray, str]:
        # A copy: a view would keep its file mapped, and Linux allows 65,530 mappings.
        return np.array(_load_file(root / names[i])), str(root / names[i])

    classes = class_names(names)
    labels = folder_labels(names, classes)
    return Stored(root, len(names), first.shape, first.dtype, read, labels, classes)


def _first_array(paths: Sequence[Path]) -> tuple[Path, np.ndarray]:
    """The first file that can be read. Raise the ValueError of the first one if none can."""
    errors = []
    for path in paths:
        try:
            return path, _load_file(path)
        except ValueError as error:
            errors.append(error)
    raise errors[0]


def _load_file(path: Path) -> np.ndarray:
    """`load_array` of a file in a folder. Raise ValueError for a link to nothing, too."""
    try:
        return load_array(path)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error


def load_array(path: Path) -> np.ndarray:
    """The memory-mapped array of an .npy. Raise ValueError or FileNotFoundError."""
    loaded = _load(path, ())
    if not isinstance(loaded, np.ndarray):
        raise ValueError(f"{path} holds several arrays: give an .npy of one.")
    return loaded


def load_conditions(path: Path) -> np.ndarray:
    """The array of an .npy, or `conditions`, or else `images`, of an .npz.

    Raise ValueError or FileNotFoundError.
    """
    for key in (CONDITIONS, "images"):
        loaded = _load(path, (key,))
        if isinstance(loaded, np.ndarray):
            return loaded
        array = loaded.get(key)
        if array is not None:
            return array
    raise ValueError(
        f"{path} holds {', '.join(loaded) or 'nothing'}: give an array `{CONDITIONS}`."
    )


def _load(path: Path, keys: Sequence[str]) -> np.ndarray | dict[str, np.ndarray | None]:
    """The memory-mapped array of an .npy, or the arrays of an .npz by name.

    Arrays of an .npz whose names are not in `keys` are not read: they are None.
    """
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return {key: loaded[key] if key in keys else None for key in loaded.files}
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no file {path}: check the path.") from None
    except MemoryError:
        raise
    # A damaged file raises errors of many types.
    except Exception as error:
        cause = one_line(error)
        raise ValueError(
            f"Cannot read {path} ({cause}): give an .npz or .npy of NumPy, without objects."
        ) from error


def _labels(path: Path, labels: np.ndarray | None, count: int) -> np.ndarray | None:
    """The labels as int32 (n,). Raise ValueError unless there is an integer for each image."""
    if labels is None:
        return None
    is_whole = labels.dtype.kind in "iu" and labels.shape == (count,)
    limits = np.iinfo(np.int32)
    check(
        is_whole and bool(np.all((limits.min <= labels) & (labels <= limits.max))),
        f"`labels` of {path} is {labels.dtype} {labels.shape}: give an integer of 32 bits for each "
        f"of the {count} images.",
    )
    return labels.astype(np.int32)


def _classes(
    path: Path, classes: np.ndarray | None, labels: np.ndarray | None
) -> tuple[str, ...] | None:
    """The names of the labels. Raise ValueError unless there is a text for each label."""
    if classes is None:
        return None
    count = 0 if labels is None else int(labels.max()) + 1
    check(
        classes.dtype.kind == "U" and classes.ndim == 1 and len(classes) >= count > 0,
        f"`classes` of {path} is {classes.dtype} {classes.shape}: give `labels`, and a text for "
        "each label from 0.",
    )
    return tuple(map(str, classes))


def check_given(conditions: np.ndarray | None, name: str, count: int, ndim: int) -> None:
    """Raise ValueError unless there is a condition of `ndim` axes for each of `count` images."""
    expected = {1: "numbers (n, k)", 3: "images (n, h, w, c)"}[ndim]
    if conditions is None:
        raise ValueError(
            f"{name} holds no conditions: give an .npz with an array `conditions`, or an .npy of "
            f"{expected} to --data.condition-path."
        )
    fits = conditions.dtype.kind in KINDS and conditions.ndim == 1 + ndim
    check(
        fits and len(conditions) == count and 0 not in conditions.shape,
        f"The conditions of {name} are {conditions.dtype} {conditions.shape}: give {expected}, one "
        f"for each of the {count} images.",
    )


def check_fits(stored: Stored, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless the images have the shape (h, w, c) of the network."""
    height, width, channels = stored.shape
    check(
        stored.shape == shape,
        f"The images of {stored.path} are {_text(stored.shape)}, but the network takes "
        f"{_text(shape)}: set --model.image-size {height} {width} and --model.channels {channels}.",
    )


def check_image(
    image: np.ndarray, name: str, stored: Stored, limits: np.ndarray | None = None
) -> None:
    """Raise ValueError unless an image fits the others, is finite and within limits (2, c)."""
    check(
        image.shape == stored.shape and image.dtype == stored.dtype,
        f"The image {name} is {image.dtype} {_text(image.shape)}, and the first one "
        f"{stored.dtype} {_text(stored.shape)}: make them equal.",
    )
    check_finite(image, name)
    if limits is not None:
        if image.dtype.kind == "f":
            # 0.1 in float32 is more than 0.1.
            limits = limits.astype(image.dtype)
        check(
            bool(np.all((limits[0] <= image) & (image <= limits[1]))),
            f"The image {name} has values from {image.min():g} to {image.max():g}, outside of "
            "--data.statistics: change one of them.",
        )


def check_finite(image: np.ndarray, name: str) -> None:
    """Raise ValueError if a value is NaN or infinite."""
    num_broken = image.size - int(np.count_nonzero(np.isfinite(image)))
    check(
        num_broken == 0,
        f"The image {name} has {num_broken} values that are not finite: replace or remove it.",
    )


def read_image(path: Path, shape: tuple[int, ...], values: Levels) -> np.ndarray:
    """One image (h, w, c) in an .npy, as float32 inputs of a network.

    Raise ValueError for another shape than the network's, for other types than uint8 if its data
    had levels, and for values that are not finite.
    """
    image = load_array(path)
    fits = image.dtype == np.uint8 if values == LEVELS else image.dtype.kind in KINDS
    check(
        image.shape == shape and fits,
        f"{path} is {image.dtype} {_text(image.shape)}, but the network draws {_text(shape)} of "
        f"{values.describe()}: give such an array.",
    )
    check_finite(image, str(path))
    return values.to_network(image)


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
