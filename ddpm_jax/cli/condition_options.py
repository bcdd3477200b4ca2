"""The option of sample.py that says what images are conditioned on, and the conditions it names."""

import dataclasses
from pathlib import Path

import numpy as np

from ddpm_jax.data.array_files import load_conditions
from ddpm_jax.data.values import Levels
from ddpm_jax.errors import check
from ddpm_jax.generation.conditions import Conditions, read_conditions
from ddpm_jax.models import Model


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConditionOptions:
    """The option of a network with a condition beside labels."""

    condition: tuple[str, ...] = ()
    """Conditions that the images take in turn, in the unit of the data: numbers, as many for each
    as the network takes, or an .npy, or an .npz with `conditions`."""

    def conditions(self, model: Model, values: Levels) -> Conditions | None:
        """The conditions, as the network takes them; None if the option is not given.

        `values` are those of the conditions of the run.
        Raise ValueError or FileNotFoundError for numbers and files that do not fit.
        """
        if not self.condition:
            return None
        return read_conditions(model, self._read(model), values)

    def _read(self, model: Model) -> np.ndarray:
        """The given conditions, in the unit of the data."""
        numbers = _as_numbers(self.condition)
        if numbers is None:
            check(len(self.condition) == 1, "--condition takes one file, or numbers alone.")
            return load_conditions(Path(self.condition[0]))
        size = model.vector_size or 1
        check(
            len(numbers) % size == 0,
            f"--condition has {len(numbers)} numbers: give {size} for each condition.",
        )
        return numbers.reshape(-1, size)


def _as_numbers(words: tuple[str, ...]) -> np.ndarray | None:
    """The words as numbers; None if one is not a number."""
    try:
        return np.array([float(word) for word in words])
    except ValueError:
        return None
