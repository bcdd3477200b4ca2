"""Pictures of samples and of training: grids, strips and GIFs, from uint8 images."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ddpm_jax.data.pixels import to_image
from ddpm_jax.files import atomic_file
from ddpm_jax.generation.generate import evenly_spaced

CHAIN_STAGES, CHAIN_SAMPLES = 10, 10
MIN_CELL = 48  # pixels: below this, an 8x8 digit is a smudge on a screen


def image_grid(images: np.ndarray, columns: int | None = None, pad: int = 2) -> Image.Image:
    """One picture of all images (uint8, "n h w c", c = 1 or 3), row by row on white, pad white pixels around each.

    columns=None makes it as near square as fits. Small images are enlarged by a whole factor, pixels kept sharp, until
    a cell measures at least 48 pixels. Raises ValueError for images of another type or shape, and for columns < 1.
    """
    check_images(images, "n h w c")
    if columns is not None and columns < 1:
        raise ValueError(f"A grid cannot have columns={columns}; give 1 or more.")
    factor = math.ceil(MIN_CELL / min(images.shape[1:3]))
    cells = images.repeat(factor, axis=1).repeat(factor, axis=2)
    n, h, w, c = cells.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    canvas = np.full((rows * (h + pad) + pad, columns * (w + pad) + pad, c), 255, np.uint8)
    for i, cell in enumerate(cells):
        top, left = pad + i // columns * (h + pad), pad + i % columns * (w + pad)
        canvas[top : top + h, left : left + w] = cell
    return to_image(canvas)


def chain_strip(states: np.ndarray) -> Image.Image:
    """One picture of the denoising path (uint8, "stages n h w c"): one row a sample, one column a stage."""
    check_images(states, "stages n h w c")
    return image_grid(np.concatenate(states.swapaxes(0, 1)), columns=len(states))


def check_output(path: str | os.PathLike, count: int | None = None, gif: bool = False) -> None:
    """Raises ValueError where `save_images`, or with `gif` also `save_gif`, could not write to path.

    Call it before sampling, with the count of images if known: then a directory that holds numbered pictures
    beyond that count is refused too, because old and new samples would lie mixed in it.
    """
    path = Path(path)
    if path.is_dir():
        _check_not_mixed(path, count)
    elif path.suffix.lower() not in ("", ".png", ".npz", *[".gif"] * gif):
        raise ValueError(
            f"Images cannot be written to '{path}'; end the name in .png (a grid){', .gif (the path)' * gif} "
            "or .npz (an array), or give none of these (a directory of one PNG each)."
        )
    elif not path.suffix and path.exists():
        raise ValueError(
            f"'{path}' is a file, not a directory; end the name in .png or .npz, or choose another."
        )
    blocked = [parent for parent in path.parents if parent.exists() and not parent.is_dir()]
    if blocked:
        raise ValueError(
            f"'{path}' cannot be made because '{blocked[0]}' is a file; choose another path."
        )


def save_images(images: np.ndarray, path: str | os.PathLike) -> None:
    """Leaves the images (uint8, "n h w c", c = 1 or 3) at path, whole or not at all.

    X.png gets one grid, X.npz the array under the key `images`; an existing directory or a name without suffix gets
    00000.png, 00001.png, ... at native size. Parent folders are made. Raises ValueError as `check_output` does.
    """
    check_images(images, "n h w c")
    path = Path(path)
    check_output(path, len(images))
    if path.is_dir() or not path.suffix:
        for i, image in enumerate(images):
            save_picture(to_image(image), path / f"{i:05d}.png")
    elif path.suffix.lower() == ".png":
        save_picture(image_grid(images), path)
    else:
        with atomic_file(path) as file:
            np.savez(file, images=images)


def save_gif(states: np.ndarray, path: str | os.PathLike, milliseconds: int = 80) -> None:
    """Leaves an endless GIF of states (uint8, "k n h w c"): each frame a grid, the last held 2 s."""
    check_images(states, "k n h w c")
    first, *rest = [image_grid(state) for state in states]
    durations = [milliseconds] * len(rest) + [2000]
    with atomic_file(path) as file:
        first.save(
            file, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0
        )


def save_states(states: np.ndarray, paths: Sequence[Path], chain: bool) -> list[Path]:
    """The files left of a walk's states (uint8, "k n h w c", samples last): each of `paths` by its suffix.

    X.gif shows the states, all others the samples; with `chain` X_chain.png shows ten stages of ten samples.
    """
    for path in paths:
        if path.suffix.lower() == ".gif":
            save_gif(states, path)
        else:
            save_images(states[-1], path)
    if not chain:
        return list(paths)
    stages = states[evenly_spaced(len(states) - 1, CHAIN_STAGES)]
    strip = paths[0].with_name(f"{paths[0].stem}_chain.png")
    save_picture(chain_strip(stages[:, :CHAIN_SAMPLES]), strip)
    return [*paths, strip]


def save_picture(picture: Image.Image, path: Path) -> None:
    """Leaves the picture as a PNG at path, whole or not at all."""
    with atomic_file(path) as file:
        picture.save(file, format="PNG")


def check_images(images: np.ndarray, axes: str) -> None:
    """Raises ValueError unless images is uint8 with these axes, none empty, and 1 or 3 channels."""
    if images.dtype != np.uint8:
        raise ValueError(
            f"Pictures are made of uint8, not {images.dtype}; call to_uint8 on the images first."
        )
    if images.ndim != len(axes.split()) or 0 in images.shape or images.shape[-1] not in (1, 3):
        raise ValueError(
            f'Images of shape {images.shape} cannot be drawn; give "{axes}", none empty, c = 1 or 3.'
        )


def _check_not_mixed(folder: Path, count: int | None) -> None:
    numbered = (int(file.stem) for file in folder.glob("*.png") if file.stem.isdecimal())
    if count is not None and any(number >= count for number in numbered):
        raise ValueError(
            f"'{folder}' holds more numbered pictures than the {count} to be written, and old and new would lie mixed; "
            "empty it or choose another directory."
        )
