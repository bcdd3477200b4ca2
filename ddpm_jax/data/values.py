"""Map the values of images to inputs of a network, and back.

8-bit images have levels. Arrays may hold numbers in any unit, which are scaled for each channel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from ddpm_jax.data.pixels import finite_floats, to_floats, to_uint8
from ddpm_jax.errors import check, check_choice

Scaling = Literal["range", "deviation"]
SHOWN = {"range": 1.0, "deviation": 3.0}
"""The input of a network that pictures show as white; its negative is black."""


@dataclasses.dataclass(frozen=True)
class Levels:
    """8-bit levels from 0 to 255, of which 0 is -1 for a network, and 255 is 1."""

    def to_network(self, values: np.ndarray) -> np.ndarray:
        """Map values (..., c) to float32 inputs of a network."""
        return to_floats(values)

    def to_values(self, x: np.ndarray) -> np.ndarray:
        """Map what a network draws to values. Raise ValueError if it is not finite."""
        return to_uint8(x)

    def show(self, values: np.ndarray) -> np.ndarray:
        """Map values to the uint8 of a picture."""
        return values

    def describe(self) -> str:
        """The values in words."""
        return "levels 0 to 255"


LEVELS = Levels()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaledValues(Levels):
    """Numbers v in any unit, mapped to x = (v - centre) / spread for each channel.

    With scaling range, x is in [-1, 1], and drawn values are clipped to that. With scaling
    deviation, x has mean 0 and deviation 1. Drawn values have the type `dtype`; integers are
    rounded.
    """

    scaling: Scaling
    centre: tuple[float, ...]
    spread: tuple[float, ...]
    dtype: str

    def __post_init__(self):
        check_choice(SHOWN, scaling=self.scaling)
        numbers = np.asarray([*self.centre, *self.spread], np.float64)
        check(
            len(self.centre) == len(self.spread) > 0
            and bool(np.isfinite(numbers).all())
            and 0 not in self.spread,
            "centre and spread must hold a finite number for each channel, and spread no 0.",
        )
        check(
            np.dtype(self.dtype).kind in "biuf",
            f"dtype must be a type of numbers, not {self.dtype}.",
        )

    def to_network(self, values: np.ndarray) -> np.ndarray:
        x = (np.asarray(values, np.float64) - self.centre) / self.spread
        return x.astype(np.float32)

    def to_values(self, x: np.ndarray) -> np.ndarray:
        x = finite_floats(x)
        if self.scaling == "range":
            x = np.clip(x, -1.0, 1.0)
        return _cast(x.astype(np.float64) * self.spread + self.centre, np.dtype(self.dtype))

    def show(self, values: np.ndarray) -> np.ndarray:
        return to_uint8(self.to_network(values) / SHOWN[self.scaling])

    def describe(self) -> str:
        kind = {"range": "middle and half range", "deviation": "mean and deviation"}[self.scaling]
        pairs = zip(self.centre, self.spread, strict=True)
        numbers = ", ".join(f"{centre:g} +- {spread:g}" for centre, spread in pairs)
        return f"{self.dtype}, {kind} of each channel: {numbers}"


def scaled_values(
    scaling: Scaling, pairs: Sequence[tuple[float, float]], dtype: np.dtype
) -> ScaledValues:
    """The mapping of arrays, by low and high, or mean and deviation, of each channel."""
    if scaling == "range":
        pairs = [((low + high) / 2, (high - low) / 2) for low, high in pairs]
    return ScaledValues(
        scaling=scaling,
        centre=tuple(float(centre) for centre, _ in pairs),
        spread=tuple(float(spread) for _, spread in pairs),
        dtype=type_name(dtype),
    )


class Scales(NamedTuple):
    """The scales of images and conditions of a trained network; None for the data's own."""

    values: Levels | None = None
    condition_values: Levels | None = None


def type_name(dtype: np.dtype) -> str:
    """The type in which values of this type are drawn: float32 for floats of any size."""
    return "float32" if dtype.kind == "f" else dtype.name


def _cast(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Cast floats to a type; round and clip them to integers or booleans."""
    if dtype.kind == "f":
        return values.astype(dtype)
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    # 2^63 - 1 is no float64: it is rounded to 2^63, which would wrap around in the cast.
    is_high = values >= high
    cast = np.clip(np.where(is_high, 0, np.rint(values)), low, high).astype(dtype)
    return np.where(is_high, np.asarray(high, dtype), cast)
