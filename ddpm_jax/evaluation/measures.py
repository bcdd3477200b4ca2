"""Measure samples against reference images: the numbers of each measure by name."""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np
from tqdm import tqdm

from ddpm_jax.errors import check
from ddpm_jax.evaluation.frechet import frechet_distance, moments
from ddpm_jax.evaluation.kid import kernel_distance
from ddpm_jax.evaluation.nearest import Nearest, nearest
from ddpm_jax.evaluation.precision_recall import precision_recall
from ddpm_jax.evaluation.reference import Reference

Measure = Literal[
    "frechet", "kid", "precision_recall", "nearest", "bits", "ode_bits", "loss", "speed"
]
DEFAULT: tuple[Measure, ...] = ("frechet", "kid", "nearest")
MIN_IMAGES = 4
"""The smallest number of samples, and of reference images."""


def frechet(vectors: np.ndarray, reference: Reference) -> dict[str, float]:
    """The Frechet distance to the reference."""
    return {"frechet": frechet_distance(reference.moments, moments(vectors))}


def kid(vectors: np.ndarray, reference: Reference) -> dict[str, float]:
    """The kernel distance to the reference, and its error."""
    value, error = kernel_distance(vectors, reference.vectors)
    return {"kid": value, "kid_error": error}


def precision_and_recall(vectors: np.ndarray, reference: Reference) -> dict[str, float]:
    """Precision and recall."""
    return dict(precision_recall(vectors, reference.vectors)._asdict())


OF_SAMPLES: dict[str, Callable[[np.ndarray, Reference], dict[str, float]]] = {
    "frechet": frechet,
    "kid": kid,
    "precision_recall": precision_and_recall,
}
"""{measure: its numbers for the feature vectors of samples}, without the nearest images."""


def compares_images(measures: Sequence[str]) -> bool:
    """Whether one of the measures needs samples and a reference."""
    return bool({*OF_SAMPLES, "nearest"} & set(measures))


def check_count(count: int, images: str) -> None:
    """Raise ValueError for fewer `images`, such as samples, than any measure needs."""
    check(
        count >= MIN_IMAGES,
        f"Measures need at least {MIN_IMAGES} {images}, not {count}: give more.",
    )


def prepare(reference: Reference, measures: Sequence[str]) -> None:
    """Compute from the reference what these measures need of it alone, to fail before a long draw.

    Raise ValueError for a reference of copies, and MemoryError.
    """
    if "frechet" in measures:
        _ = reference.moments
    if "nearest" in measures:
        _ = reference.typical_distance


def measure(
    vectors: np.ndarray, reference: Reference, measures: Sequence[str]
) -> tuple[dict[str, float], Nearest | None]:
    """The numbers of these measures, and with `nearest` the nearest reference image of each sample.

    The distances are relative to the typical one of held-out reference images. Raise ValueError for
    the name of another measure, and for vectors that are not finite.
    """
    known = get_args(Measure)
    unknown = ", ".join(name for name in measures if name not in known)
    check(not unknown, f"Unknown measures {unknown}: choose from {', '.join(known)}.")
    for whose, each in (("samples", vectors), ("reference images", reference.vectors)):
        finite = bool(np.isfinite(each).all())
        check(finite, f"Features of the {whose} are not finite: look for NaN in their images.")
    numbers: dict[str, float] = {}
    chosen = [name for name in OF_SAMPLES if name in measures]
    for name in tqdm(chosen, "Comparing", unit="measure", leave=False):
        numbers |= OF_SAMPLES[name](vectors, reference)
    if "nearest" not in measures:
        return numbers, None
    distances, indices = nearest(vectors, reference.vectors)
    relative = distances / reference.typical_distance
    return numbers | {"nearest_ratio": float(np.median(relative))}, Nearest(relative, indices)


def over_seeds(numbers: Sequence[dict[str, float]]) -> dict[str, float | None]:
    """The mean of each number over the seeds, and its `_spread`: the standard deviation.

    The spread over one seed is None. Errors have none.
    """
    result: dict[str, float | None] = {}
    for key in numbers[0]:
        values = [each[key] for each in numbers]
        result[key] = float(np.mean(values))
        if not key.endswith("_error"):
            result[f"{key}_spread"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return result
