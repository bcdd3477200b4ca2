"""Draw uint8 images as grids, strips and GIFs."""

import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from ddpm_jax.data.pixels import choose_channels, to_image
from ddpm_jax.data.values import LEVELS, Levels
from ddpm_jax.errors import check
from ddpm_jax.files import atomic_file, check_writable, write_all
from ddpm_jax.generation.generate import evenly_spaced

CHAIN_STAGES = 10
CHAIN_SAMPLES = 10
MIN_CELL = 48
"""Smallest side of a cell in pixels. In a smaller cell an 8x8 digit is hard to recognise."""


def image_grid(images: np.ndarray, columns: int | None = None, pad: int = 2) -> Image.Image:
    """One picture of all images (uint8, "n h w c"), row by row, in the colours of `to_image`.

    Each image has a white border of `pad` pixels. By default the grid is as near to a square as
    possible. Small images are enlarged by a whole factor, without interpolation, until each side of
    a cell has at least 48 pixels. Raise ValueError for images of another type or shape, and for
    columns < 1.
    """
    check_images(images, "n h w c")
    if columns is not None and columns < 1:
        raise ValueError(f"A grid cannot have columns={columns}: give 1 or more.")
    factor = math.ceil(MIN_CELL / min(images.shape[1:3]))
    cells = images.repeat(factor, axis=1).repeat(factor, axis=2)
    n, h, w, c = cells.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    canvas = np.full((rows * (h + pad) + pad, columns * (w + pad) + pad, c), 255, np.uint8)
    for i, cell in enumerate(cells):
        top = pad + i // columns * (h + pad)
        left = pad + i % columns * (w + pad)
        canvas[top : top + h, left : left + w] = cell
    return to_image(canvas)


def chain_strip(states: np.ndarray) -> Image.Image:
    """One picture of the denoising path (uint8, "stages n h w c").

    Each row shows a sample, each column a stage.
    """
    check_images(states, "stages n h w c")
    by_sample = states.swapaxes(0, 1)  # (n, stages, h, w, c)
    return image_grid(np.concatenate(by_sample), columns=len(states))


def kind_of(path: Path) -> Literal["folder", "array", "gif", "grid"]:
    """The kind of an output, by its suffix; a folder has none, or exists. A GIF shows the walk."""
    if path.is_dir() or not path.suffix:
        return "folder"
    kinds: dict[str, Literal["array", "gif"]] = {".npz": "array", ".gif": "gif"}
    return kinds.get(path.suffix.lower(), "grid")


def check_outputs(paths: Sequence[Path], num_images: int | None = None, gif: bool = False) -> None:
    """Raise ValueError for no output, or for one that `check_output` refuses."""
    check(len(paths) > 0, "--out names no file: give at least one, such as --out x.png.")
    for path in paths:
        check_output(path, num_images, gif)


def check_output(path: str | os.PathLike, num_images: int | None = None, gif: bool = False) -> None:
    """Raise ValueError if `save_images`, or with `gif` also `save_gif`, cannot write to `path`.

    Call this before sampling. With `num_images`, a directory that holds a picture with a higher
    number is an error too, because it would mix old and new samples.
    """
    path = Path(path)
    if path.is_dir():
        check_not_mixed(path, num_images)
    elif path.suffix.lower() not in ("", ".png", ".npz", *[".gif"] * gif):
        gif_form = ", .gif (the path)" if gif else ""
        raise ValueError(
            f"Images cannot be written to '{path}': end the name in .png (a grid){gif_form} "
            "or .npz (an array), or in no suffix (a directory of one PNG per image)."
        )
    elif not path.suffix and path.exists():
        raise ValueError(
            f"'{path}' is a file, not a directory: end the name in .png or .npz, or change it."
        )
    blocked = [parent for parent in path.parents if parent.exists() and not parent.is_dir()]
    if blocked:
        raise ValueError(
            f"'{path}' cannot be created because '{blocked[0]}' is a file: choose another path."
        )


def save_images(images: np.ndarray, path: str | os.PathLike) -> None:
    """Write images (uint8, "n h w c") to `path`, each file atomically.

    X.png is a grid; X.npz holds the array under the key `images`. An existing directory, or a name
    without a suffix, gets 00000.png, 00001.png, ... at native size. Parent folders are created.
    Raise ValueError as `check_output` does.
    """
    check_images(images, "n h w c")
    path = Path(path)
    check_output(path, len(images))
    match kind_of(path):
        case "array":
            save_array(images, path)
        case "folder":
            for i, image in enumerate(images):
                save_picture(to_image(image), path / f"{i:05d}.png")
        case _:
            save_picture(image_grid(images), path)


def save_array(images: np.ndarray, path: Path) -> None:
    """Write an array of any type under the key `images`, atomically."""
    with atomic_file(path) as file:
        np.savez(file, images=images)


def save_gif(states: np.ndarray, path: str | os.PathLike, milliseconds: int = 80) -> None:
    """Write a looping GIF of the states (uint8, "k n h w c").

    Each frame is a grid and lasts `milliseconds`; the last one lasts 2 seconds.
    """
    check_images(states, "k n h w c")
    first, *rest = [image_grid(state) for state in states]
    durations = [milliseconds] * len(rest) + [2000]
    with atomic_file(path) as file:
        first.save(
            file, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0
        )


def save_states(
    states: np.ndarray,
    paths: Sequence[Path],
    chain: bool,
    values: Levels = LEVELS,
    channels: Sequence[int] = (),
) -> list[Path]:
    """Write the states of a sampling walk ("k n h w c", samples last) to each of `paths`.

    X.gif shows the states, X.npz holds the samples, any other path shows them. With `chain`,
    X_chain.png, named after the first path, shows ten stages of ten samples. Pictures show what
    `values.show` makes of the states, and these channels, by default all. Return the paths of all
    files. Raise OSError as `files.write_all` does.
    """
    pictures = choose_channels(values.show(states), channels)
    outputs: dict[Path, Callable[[Path], None]] = {}
    for path in paths:
        match kind_of(path):
            case "gif":
                outputs[path] = partial(save_gif, pictures)
            case "array":
                outputs[path] = partial(save_array, states[-1])
            case _:
                outputs[path] = partial(save_images, pictures[-1])
    if chain:
        outputs[_chain_path(paths)] = partial(_save_chain, pictures)
    return write_all(outputs)


def check_paths(paths: Sequence[Path], chain: bool) -> None:
    """Raise OSError if `save_states` cannot write to each path. Missing folders are created.

    Raise ValueError if X_chain.png is itself one of the paths.
    """
    if chain:
        check_unused(_chain_path(paths), paths)
    for path in paths:
        check_writable(path / f"{0:05d}.png" if kind_of(path) == "folder" else path)
    if chain:
        check_writable(_chain_path(paths))


def check_unused(path: Path, outputs: Sequence[Path]) -> None:
    """Raise ValueError if a file beside the outputs would replace one of them."""
    check(
        path.resolve() not in {output.resolve() for output in outputs},
        f"'{path}' is written besides the images: give the output of this name another one.",
    )


def _chain_path(paths: Sequence[Path]) -> Path:
    return paths[0].parent / f"{paths[0].stem}_chain.png"


def _save_chain(states: np.ndarray, path: Path) -> None:
    stages = states[evenly_spaced(len(states) - 1, CHAIN_STAGES)]
    save_picture(chain_strip(stages[:, :CHAIN_SAMPLES]), path)


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write the picture as a PNG to `path`, atomically."""
    with atomic_file(path) as file:
        picture.save(file, format="PNG")


def check_images(images: np.ndarray, axes: str) -> None:
    """Raise ValueError unless `images` is uint8 with these axes, none empty."""
    if images.dtype != np.uint8:
        raise ValueError(
            f"Pictures are made of uint8, not {images.dtype}: call to_uint8 on the images first."
        )
    if images.ndim != len(axes.split()) or 0 in images.shape:
        raise ValueError(
            f'Images of shape {images.shape} cannot be drawn: give "{axes}", none empty.'
        )


def check_not_mixed(folder: Path, num_images: int | None) -> None:
    """Raise ValueError if a folder holds a picture whose number is not below `num_images`."""
    numbers = (int(file.stem) for file in folder.glob("*.png") if file.stem.isdecimal())
    if num_images is not None and any(number >= num_images for number in numbers):
        raise ValueError(
            f"'{folder}' holds more numbered pictures than the {num_images} to be written, "
            "and old and new ones would be mixed: empty it or choose another directory."
        )
