"""Record with which frozen weights a step was trained, and compare them with those of now.

A LoRA is trained on its `base`, a network of latents on its `autoencoder`: the record of a step
holds the hash of these weights by that name.
"""

import hashlib
from pathlib import Path

import numpy as np

from ddpm_jax.errors import check
from ddpm_jax.models import Params
from ddpm_jax.runs import saved_steps
from ddpm_jax.training.lora import by_path

FORMER_DIGITS = 16
"""Length of the hashes of an autoencoder's files, in records of older runs: they cannot be compared
with a hash of weights."""


def weights_hash(params: Params) -> str:
    """A SHA-256 of the paths, shapes and values of parameters."""
    digest = hashlib.sha256()
    for path, leaf in sorted(by_path(params).items()):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{path} {array.dtype} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


def is_trained_with(folder: Path, step: int, part: str, weights: str) -> bool:
    """Whether a saved step was trained with the weights of a part that have this hash.

    A step that recorded a hash of the former, shorter kind counts as trained with any.
    """
    trained = str(saved_steps.data_at(folder, step).get(part))
    return trained == weights or len(trained) == FORMER_DIGITS


def check_trained_with(folder: Path, step: int, part: str, weights: str, place: str | Path) -> None:
    """Raise ValueError unless `is_trained_with`. `place` is where the weights are."""
    check(
        is_trained_with(folder, step, part, weights),
        f"Step {step} of {folder} was trained on other weights than those in {place} now: put the "
        "old ones back there, or train it again with --overwrite.",
    )
