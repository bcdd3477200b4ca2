"""Images and masks as arrays, prepared as diffusers' pipelines prepare them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from ddpm_jax.data.decode import decode_colour, to_colour
from ddpm_jax.errors import check

WHITE_FROM = 128
ImageInput = Image.Image | np.ndarray | str | Path


def open_image(image: ImageInput, channels: int = 3, ground: str = "white") -> Image.Image:
    """The image at a path, or in uint8 (h, w, c) or (h, w), in 8-bit RGB (3) or greyscale (1).

    Transparent pixels become the colour `ground`. Raise FileNotFoundError or ValueError.
    """
    if isinstance(image, (str, Path)):
        if not Path(image).is_file():
            raise FileNotFoundError(f"There is no image {image}: check its path.")
        return decode_colour(Path(image), str(image), channels, ground)
    if isinstance(image, np.ndarray):
        is_picture = image.ndim in (2, 3) and image.shape[2:] in ((), (1,), (3,), (4,))
        check(
            image.dtype == np.uint8 and is_picture,
            "An image must be uint8 (h, w, c) of 1, 3 or 4 channels, not "
            f"{image.dtype} {image.shape}: give one image, and convert floats in [-1, 1] with "
            "to_uint8.",
        )
        image = Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)
    return to_colour(image, channels, ground)


def open_mask(mask: ImageInput) -> Image.Image:
    """The greyscale mask at a path or in an array, in which True is white.

    Transparent pixels are black, which is kept. Raise FileNotFoundError or ValueError.
    """
    if isinstance(mask, np.ndarray):
        if mask.dtype == bool:
            mask = mask.astype(np.uint8) * 255
        check(
            mask.dtype == np.uint8,
            f"A mask must be bool, or uint8 from 0 (kept) to 255 (redrawn), not {mask.dtype}: "
            "compare it with a number, as in mask > 0.5.",
        )
    return open_image(mask, 1, ground="black")


def read_pixels(
    images: Sequence[ImageInput],
    masks: Sequence[ImageInput],
    size: tuple[int | None, int | None],
    latent_size: tuple[int, int],
    factor: int,
) -> tuple[np.ndarray | None, np.ndarray | None, int, int]:
    """Images (n, h, w, 3) and masks (m, h, w, 1) of one size, None for none, and the size (h, w).

    The given `size` counts, then the images' own, cut to a multiple of `factor`, if there are no
    masks, then `latent_size` times `factor`. Raise ValueError for images that differ in size
    without a given one.
    """
    opened = [open_image(image) for image in images]
    height, width = (length * factor for length in latent_size)
    if opened and not masks:
        sizes = {image.size for image in opened}
        check(
            len(sizes) == 1 or None not in size, "The images differ in size: give height and width."
        )
        width, height = (length - length % factor for length in opened[0].size)
    height, width = (
        default if given is None else given
        for given, default in zip(size, (height, width), strict=True)
    )
    height, width = divisible_size(height, width, factor)
    resized = [resize(image, height, width) for image in opened]
    resized_masks = [resize_mask(open_mask(mask), height, width) for mask in masks]
    return (
        np.stack(resized) if resized else None,
        np.stack(resized_masks) if resized_masks else None,
        height,
        width,
    )


def resize(image: Image.Image, height: int, width: int) -> UInt8[np.ndarray, "h w c"]:
    """Resize by Lanczos' filter to uint8 (height, width, channels)."""
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(height, width, -1)


def resize_mask(mask: Image.Image, height: int, width: int) -> Bool[np.ndarray, "h w 1"]:
    """A greyscale mask, resized: True where it is white, which is redrawn."""
    return resize(mask, height, width) >= WHITE_FROM


def shrink_mask(masks: Bool[np.ndarray, "b h w 1"], factor: int) -> Bool[np.ndarray, "b h2 w2 1"]:
    """Masks of latents: the first pixel of each block, as PyTorch's nearest interpolation."""
    return masks[:, ::factor, ::factor]


def paste_known(
    drawn: UInt8[np.ndarray, "b h w c"],
    images: UInt8[np.ndarray, "b h w c"],
    masks: Bool[np.ndarray, "b h w 1"],
) -> UInt8[np.ndarray, "b h w c"]:
    """The drawn images inside the masks and the given ones outside.

    The autoencoder changes known pixels too, so latents alone cannot keep them.
    """
    return np.where(masks, drawn, images)


def divisible_size(height: int, width: int, factor: int) -> tuple[int, int]:
    """The size (height, width). Raise ValueError unless `factor` divides both."""
    for name, size in (("height", height), ("width", width)):
        lower = max(size - size % factor, 0)
        nearest = f"{lower} or {lower + factor}" if lower else f"{factor}"
        check(
            size > 0 and size % factor == 0,
            f"The {name} must be a multiple of {factor} pixels, not {size}: use {nearest}.",
        )
    return height, width
