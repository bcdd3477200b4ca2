"""What sample.py can be told to do with pictures, and the pictures it is told to do it with."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from PIL import Image, ImageOps

from ddpm_jax.data.decode import decode_image
from ddpm_jax.data.pixels import to_floats
from ddpm_jax.errors import check
from ddpm_jax.generation.editing import Edit
from ddpm_jax.generation.recipe import Recipe

HALF = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditOptions:
    """Where samples start, if not from noise; sample i is of picture and mask i, in turn."""

    image: tuple[Path, ...] = ()
    """Pictures to start from, resized as the run's data were."""
    strength: float | None = None
    """Share of the walk a picture goes through, in (0, 1]; None for 0.5, and for 1 with --mask or --invert."""
    mask: tuple[Path, ...] = ()
    """White where a picture is made anew, black where it stays; of the size of the picture."""
    resample: int = 1
    """With --mask: how often each stretch of the walk is walked, so that new fits old (RePaint; 10 in its paper)."""
    jump_length: int | None = None
    """Steps of such a stretch; None for 10."""
    interpolate: bool = False
    """Go from the first picture to the second, or without pictures from one noise to another."""
    invert: bool = False
    """Find what leads to a picture by walking up, in place of adding noise; for samplers that draw none, as ddim."""

    def default_num(self) -> int | None:
        """How many samples there are to draw where that is not a matter of choice."""
        return len(self.image) if self.invert and not self.interpolate else None

    def edit(self, recipe: Recipe, num: int) -> Edit | None:
        """The edit that is asked for, if any; raises ValueError or FileNotFoundError where it cannot be made."""
        self._check_together(num)
        if not self.image and not self.interpolate:
            return None
        images = [to_floats(read(path, "--image", recipe)) for path in self.image]
        masks = [read(path, "--mask", recipe).mean(-1, keepdims=True) >= HALF for path in self.mask]
        for i, path in enumerate(self.mask):
            _check_same_size(path, self.image[i :: len(self.mask)])
        first, last = (images[:1], images[1:]) if self.interpolate else (images, [])
        return Edit(
            images=_stack(first),
            end_images=_stack(last),
            masks=_stack(masks),
            fractions=jnp.linspace(0, 1, num) if self.interpolate else None,
            strength=self.strength or (0.5 if images and not masks and not self.invert else 1.0),
            repeats=self.resample,
            jump_length=10 if self.jump_length is None else self.jump_length,
            invert=self.invert,
        )

    def _check_together(self, num: int) -> None:
        strength, pictures, masks = self.strength, len(self.image), len(self.mask)
        check(
            strength is None or 0 < strength <= 1,
            f"--strength must be above 0 and at most 1, not {strength}",
        )
        check(self.resample >= 1, f"--resample must be at least 1, not {self.resample}")
        for name, given in (
            ("strength", strength is not None),
            ("mask", masks),
            ("invert", self.invert),
        ):
            check(pictures > 0 or not given, f"--{name} is for a picture: give --image PATH too")
        check(
            masks in (0, 1, pictures),
            f"there are {masks} masks for {pictures} pictures: give one, or one for each",
        )
        check(masks > 0 or self.resample == 1, "--resample is for a mask: give --mask PATH too")
        check(
            self.resample > 1 or self.jump_length is None,
            "--jump-length is for --resample: give how often too",
        )
        check(
            pictures <= num or self.interpolate,
            f"there are {pictures} pictures for --num {num}: draw one of each",
        )
        check(
            not masks or not (self.interpolate or self.invert),
            "--mask goes with neither --interpolate nor --invert",
        )
        if self.interpolate:
            check(
                pictures in (0, 2),
                f"--interpolate is between two pictures, or two noises, not {pictures} pictures",
            )
            check(num >= 2, f"--interpolate makes at least 2 pictures, not --num {num}")


def read(path: Path, flag: str, recipe: Recipe) -> np.ndarray:
    """The picture at `path` as uint8 (h, w, c) for the net, fitted as its data were."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no picture {path}: check {flag}")
    return decode_image(
        path, str(path), recipe.model.image_size, recipe.model.channels, recipe.resize
    )


def _stack(arrays: list[np.ndarray]) -> Array | None:
    return jnp.asarray(np.stack(arrays)) if arrays else None


def _check_same_size(mask: Path, pictures: tuple[Path, ...]) -> None:
    width, height = _size(mask)
    for picture in pictures:
        check(
            _size(picture) == (width, height),
            f"the mask {mask} is {width}x{height} and the picture {picture} {'x'.join(map(str, _size(picture)))}: "
            "a mask must have the size of its picture",
        )


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).size
