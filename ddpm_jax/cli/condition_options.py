"""The option of sample.py that says what images are conditioned on, and the conditions it names."""

import dataclasses
from pathlib import Path

import numpy as np

from ddpm_jax.data.array_files import load_conditions
from ddpm_jax.data.decode import decode_colour
from ddpm_jax.data.values import LEVELS, Levels
from ddpm_jax.errors import check
from ddpm_jax.generation.conditions import Conditions, parts_of, read_conditions
from ddpm_jax.models import Model

COLOURS = (1, 3)
"""The channels that image files may have: grey, or RGB."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConditionOptions:
    """The option of a network with a condition beside labels."""

    condition: tuple[str, ...] = ()
    """Conditions that the images take in turn, in the unit of the data: numbers, as many for each
    as the network takes; images, of its size or smaller; or an .npy, or an .npz with `conditions`
    or `images`."""

    def conditions(self, model: Model, values: Levels) -> Conditions | None:
        """The conditions, as the network takes them; None if the option is not given.

        `values` are those of the conditions of the run.
        Raise ValueError or FileNotFoundError for numbers and files that do not fit.
        """
        if not self.condition:
            return None
        check(bool(parts_of(model)), "This network takes no such condition: leave out --condition.")
        parts = [
            read_conditions(model, given, values, name)
            for name, given in self._given(model, values)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _given(self, model: Model, values: Levels) -> list[tuple[str, np.ndarray]]:
        """The given conditions, in the unit of the data, each with its name for messages."""
        numbers = _as_numbers(self.condition)
        channels, size = model.condition_channels, model.vector_size
        if numbers is not None and size is not None:
            check(
                len(numbers) % size == 0,
                f"--condition has {len(numbers)} numbers: give {size} for each condition.",
            )
            return [("--condition", numbers.reshape(-1, size))]
        taken = f"{size} numbers for each image, or an .npy of rows"
        if channels is not None:
            are_pictures = channels in COLOURS and values == LEVELS
            files = "files or in an .npy" if are_pictures else "an .npy"
            taken = f"images of {channels} channels, in {files}"
        for path in map(Path, self.condition):
            if not path.is_file():
                raise FileNotFoundError(
                    f"There is no file {path}, and this network is conditioned on {taken}: give "
                    "these to --condition."
                )
        return [(word, _read(Path(word), channels or 0, values, taken)) for word in self.condition]


def _read(path: Path, channels: int, values: Levels, taken: str) -> np.ndarray:
    """Read an array, or an image in its own size. `taken` is what the network takes."""
    if path.suffix.lower() in (".npy", ".npz"):
        return load_conditions(path)
    check(
        channels in COLOURS,
        f"{path} is no .npy or .npz: give {taken}.",
    )
    check(
        values == LEVELS,
        f"{path} has levels from 0 to 255, but the condition of this network is in another unit "
        f"({values.describe()}): give an .npy.",
    )
    pixels = np.asarray(decode_colour(path, str(path), channels))
    return pixels.reshape(*pixels.shape[:2], channels)


def _as_numbers(words: tuple[str, ...]) -> np.ndarray | None:
    """The words as numbers; None if one is not a number."""
    try:
        return np.array([float(word) for word in words])
    except ValueError:
        return None
