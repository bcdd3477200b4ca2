"""The option of sample.py to add LoRA files to a network."""

import dataclasses
import math
from pathlib import Path

from ddpm_jax.errors import check


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """Options to change the network by LoRA files."""

    lora: tuple[str, ...] = ()
    """LoRA files to add, PATH or PATH:SCALE, such as style.safetensors:0.8."""

    def lora_files(self) -> list[tuple[Path, float]]:
        """The files of --lora with their scales, 1 by default.

        Raise FileNotFoundError if one is missing, and ValueError for a scale that is no number.
        """
        return [_file_and_scale(text) for text in self.lora]


def _file_and_scale(text: str) -> tuple[Path, float]:
    path, colon, number = text.rpartition(":")
    if not colon or Path(text).exists():
        path, number = text, "1"
    if not Path(path).exists():
        raise FileNotFoundError(f"There is no LoRA file {path}: check --lora.")
    try:
        scale = float(number)
    except ValueError:
        scale = math.nan
    check(
        math.isfinite(scale),
        f"--lora {text} has the scale {number!r}, which is no number: give PATH:SCALE, such as "
        f"{path}:0.8.",
    )
    return Path(path), scale
