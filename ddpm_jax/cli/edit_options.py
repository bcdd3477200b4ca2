"""Options of sample.py to start from images, and the edit that they describe."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ddpm_jax.data.array_files import load_array, read_image
from ddpm_jax.data.decode import MAX_PIXELS, convert_file, decode_image, upright
from ddpm_jax.data.values import LEVELS, Levels
from ddpm_jax.errors import check
from ddpm_jax.generation.editing import Edit
from ddpm_jax.generation.model_spec import ModelSpec

WHITE_FROM = 128
DEFAULT_STRENGTH = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditOptions:
    """Options to start from images instead of noise. The samples take images and masks in turn."""

    image: tuple[Path, ...] = ()
    """Images to start from, resized like the data of the run; an .npy for a run on arrays."""
    strength: float | None = None
    """Fraction of the steps to run, in (0, 1]; None for 0.5, or 1 with --mask or --invert."""
    mask: tuple[Path, ...] = ()
    """Masks, each of the size of its image. White is redrawn; black and what is transparent are
    kept."""
    resample: int = 1
    """RePaint, with --mask: passes over each stretch of the denoising path (10 in the paper)."""
    jump_length: int | None = None
    """Steps in a stretch of --resample; None for 10, or for one less than the steps if
    these are fewer than 11."""
    interpolate: bool = False
    """Interpolate between two images, or without --image between two noises."""
    invert: bool = False
    """Run a deterministic sampler such as ddim backwards to noise, instead of adding noise."""
    max_pixels: int = MAX_PIXELS
    """Largest image or mask to decode, in pixels."""

    def default_num(self) -> int | None:
        """With --invert one sample for each image, since more would repeat them; else None."""
        return len(self.image) if self.invert and not self.interpolate else None

    def edit(self, spec: ModelSpec, num_images: int, values: Levels = LEVELS) -> Edit | None:
        """The edit for `num_images` samples; None if the options ask for none.

        `values` are those of the run's data.
        Raise ValueError or FileNotFoundError for options and files that do not fit.
        """
        self._check_together(num_images)
        if not self.image and not self.interpolate:
            return None
        images = [self._read_image(path, spec, values) for path in self.image]
        masks = [self._read_mask(path, spec) for path in self.mask]
        for i, path in enumerate(self.mask):
            _check_same_size(path, self.image[i :: len(self.mask)])
        first, last = (images[:1], images[1:]) if self.interpolate else (images, [])
        fractions = jnp.linspace(0, 1, num_images, dtype=jnp.float32)
        redo_part = bool(images) and not masks and not self.invert
        default_strength = DEFAULT_STRENGTH if redo_part else 1.0
        return Edit(
            images=_stack(first),
            end_images=_stack(last),
            masks=_stack(masks),
            fractions=fractions if self.interpolate else None,
            strength=self.strength or default_strength,
            repeats=self.resample,
            jump_length=self.jump_length,
            invert=self.invert,
        )

    def _read_image(self, path: Path, spec: ModelSpec, values: Levels) -> np.ndarray:
        """The image as float32 (h, w, c), as the network takes it."""
        channels = spec.model.channels
        if _is_array(path):
            return read_image(path, spec.model.image_shape, values)
        check(
            channels in (1, 3) and values == LEVELS,
            f"The network draws {channels} channels of {values.describe()}, which {path} cannot "
            "hold: give an .npy of an array (h, w, c).",
        )
        return values.to_network(self._read(path, "--image", spec, channels, "white"))

    def _read_mask(self, path: Path, spec: ModelSpec) -> np.ndarray:
        """The mask as bool (h, w, 1), True where the image is redrawn."""
        channels = spec.model.channels if spec.model.channels in (1, 3) else 1
        pixels = self._read(path, "--mask", spec, channels, "black")  # (h, w, channels)
        return pixels.mean(-1, keepdims=True) >= WHITE_FROM

    def _read(
        self, path: Path, flag: str, spec: ModelSpec, channels: int, ground: str
    ) -> np.ndarray:
        """Read an image as uint8 (h, w, channels), resized like the training data.

        Transparent pixels become the colour `ground`.
        """
        if not path.is_file():
            raise FileNotFoundError(f"There is no image {path}: check {flag}.")
        limit = (self.max_pixels, "--max-pixels")
        size = spec.model.image_size
        return decode_image(path, str(path), size, channels, spec.resize, *limit, ground)

    def _check_together(self, num_images: int) -> None:
        strength = self.strength
        images = len(self.image)
        masks = len(self.mask)
        check(
            strength is None or 0 < strength <= 1,
            f"--strength must be above 0 and at most 1, not {strength}.",
        )
        check(self.resample >= 1, f"--resample must be at least 1, not {self.resample}.")
        needs_image = {"strength": strength is not None, "mask": masks > 0, "invert": self.invert}
        for name, given in needs_image.items():
            check(images > 0 or not given, f"--{name} is for an image: give --image PATH too.")
        check(
            masks in (0, 1, images),
            f"--mask has {masks} files and --image {images}: give one mask, or one for each image.",
        )
        check(masks > 0 or self.resample == 1, "--resample is for a mask: give --mask PATH too.")
        check(
            self.resample > 1 or self.jump_length is None,
            "--jump-length is for --resample: give --resample NUMBER too.",
        )
        check(
            images <= num_images or self.interpolate,
            f"--image has {images} files, but --num is {num_images}: draw at least one of each.",
        )
        check(
            not masks or not (self.interpolate or self.invert),
            "--mask goes with neither --interpolate nor --invert: leave one out.",
        )
        if self.interpolate:
            check(
                images in (0, 2),
                f"--interpolate goes between two images or two noises, not {images} images: "
                "give two images or none.",
            )
            check(num_images >= 2, f"--interpolate needs a --num of at least 2, not {num_images}.")


def _stack(arrays: list[np.ndarray]) -> Array | None:
    return jnp.asarray(np.stack(arrays)) if arrays else None


def _check_same_size(mask: Path, images: tuple[Path, ...]) -> None:
    width, height = _size(mask)
    for image in images:
        image_width, image_height = _size(image)
        check(
            (image_width, image_height) == (width, height),
            f"The mask {mask} is {width}x{height} and the image {image} "
            f"{image_width}x{image_height}: give a mask of the image's size.",
        )


def _size(path: Path) -> tuple[int, int]:
    """The width and height of an image."""
    if _is_array(path):
        height, width = load_array(path).shape[:2]
        return width, height
    return convert_file(path, lambda image: upright(image).size)


def _is_array(path: Path) -> bool:
    return path.suffix.lower() == ".npy"
