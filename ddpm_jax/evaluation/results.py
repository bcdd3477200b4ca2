"""Results of a measurement as tables, and whether two of them can be compared."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddpm_jax.errors import check

Result = Mapping[str, Any]

LABELS = {
    "frechet": "Frechet distance",
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
    "nearest_ratio": "nearest ratio",
    "bits_per_dim": "bits per dimension, at most",
    "ode_bits_per_dim": "bits per dimension by the ODE",
    "loss": "loss",
    "images_per_second": "images a second",
}
"""{number: its name in a table}."""
OF_SAMPLES = ("n", "features", "features_weights", "features_resize", "against", "sampling")
OF_BITS = ("bits_num", "against", "variance")
MADE_WITH = {
    **dict.fromkeys(("frechet", "kid", "precision", "recall", "nearest_ratio"), OF_SAMPLES),
    "bits_per_dim": OF_BITS,
    "ode_bits_per_dim": OF_BITS,
    "loss": OF_BITS,
    "images_per_second": ("sampling", "batch_size", "device"),
}
"""{number: what must be equal to compare it}."""
ELSEWHERE = {"sampler": "drawn elsewhere"}


def numbers_of(result: Result) -> list[str]:
    """The numbers that a result has, in the order of tables."""
    return [key for key in LABELS if key in result]


def cell(result: Result, key: str) -> str:
    """A number with its error and its spread over seeds."""
    text = f"{result[key]:.4f}"
    if result.get(f"{key}_error") is not None:
        text += f" +- {result[f'{key}_error']:.4f}"
    if result.get(f"{key}_spread") is not None:
        text += f" (+- {result[f'{key}_spread']:.4f} over {len(result['seeds'])} seeds)"
    return text


def measures_samples(key: str) -> bool:
    """Whether a number compares samples with reference images."""
    return MADE_WITH[key] is OF_SAMPLES


def images_of(result: Result, key: str) -> str:
    """The number of images from which a number was computed; a dash for a speed."""
    counts = {OF_SAMPLES: "n", OF_BITS: "bits_num"}
    conditions = MADE_WITH[key]
    return f"{result[counts[conditions]]:,}" if conditions in counts else "-"


def table(result: Result) -> str:
    """The numbers of a result, and below them how they were made."""
    rows = [("measure", "value", "images", "features")]
    for key in numbers_of(result):
        features = result["features"] if measures_samples(key) else "-"
        rows.append((LABELS[key], cell(result, key), images_of(result, key), features))
    return "\n".join([*aligned(rows), *described(result)])


def described(result: Result) -> list[str]:
    """How the numbers were made, as lines of text."""
    lines = [
        f"against: {result['against']}, {result['against_n']:,} images "
        f"(hash {result['against_images']})",
        f"samples: {result['samples']}",
    ]
    if any(map(measures_samples, numbers_of(result))):
        weights = result["features_weights"] or "none"
        resize = result["features_resize"]
        lines.insert(0, f"features: {result['features']} (weights: {weights}, resize: {resize})")
    if "loss_bands" in result:
        bands = "  ".join(f"{loss:.4f}" for loss in result["loss_bands"])
        lines.append(f"loss by eighths of t, from data to noise: {bands}")
    return lines


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of text with columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def read_result(path: Path) -> dict[str, Any]:
    """Read a result. Raise FileNotFoundError or ValueError."""
    try:
        result = json.loads(path.read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no file {path}: check the path.") from None
    except (ValueError, OSError) as error:
        raise ValueError(
            f"Cannot read {path} ({error}): give a JSON file of ddpm_jax.evaluate."
        ) from error
    check(
        isinstance(result, dict) and bool(numbers_of(result)) and "against_images" in result,
        f"{path} holds no result: give a JSON file of ddpm_jax.evaluate.",
    )
    return result


def compare(results: Mapping[str, Result], may_differ: Sequence[str] = ()) -> str:
    """A table of the numbers that all `results` (by name) have.

    Raise ValueError if there is none, or if numbers were made differently in another way than
    `may_differ` allows.
    """
    names = list(results)
    first = results[names[0]]
    shared = [key for key in numbers_of(first) if all(key in each for each in results.values())]
    check(bool(shared), f"{' and '.join(names)} have no number in common: measure the same ones.")
    for name in names[1:]:
        found = differences(first, results[name], shared)
        not_allowed = {
            key: values
            for key, values in found.items()
            if not {key, key.partition(".")[0]} & set(may_differ)
        }
        listed = ", ".join(f"{key} ({a}; {b})" for key, (a, b) in not_allowed.items())
        check(
            not not_allowed,
            f"{names[0]} and {name} were made differently: {listed}. Measure again in one way, or "
            f"allow it by --may-differ {' '.join(not_allowed)}.",
        )
    rows = [("measure", *names)]
    rows += [(LABELS[key], *(cell(each, key) for each in results.values())) for key in shared]
    return "\n".join(aligned(rows))


def differences(a: Result, b: Result, numbers: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """The conditions of these numbers that differ, with both values, such as sampling.steps."""
    keys = dict.fromkeys(key for number in numbers for key in MADE_WITH[number])
    found: dict[str, tuple[Any, Any]] = {}
    for key in keys:
        if key == "sampling":
            found |= _sampling_differences(a, b)
        elif _identity(a, key) != _identity(b, key):
            found[key] = (_shown(a, key), _shown(b, key))
    return found


def _identity(result: Result, key: str) -> Any:
    """A reference is known by its images, wherever they are."""
    return result.get("against_images" if key == "against" else key)


def _shown(result: Result, key: str) -> Any:
    against = f"{result['against']}, {result['against_n']:,} images"
    return against if key == "against" else result.get(key)


def _sampling_differences(a: Result, b: Result) -> dict[str, tuple[Any, Any]]:
    ours, theirs = (result.get("sampling") or ELSEWHERE for result in (a, b))
    if ELSEWHERE in (ours, theirs):
        ours = {"sampler": ours["sampler"]}
        theirs = {"sampler": theirs["sampler"]}
    return {
        f"sampling.{key}": (ours.get(key), theirs.get(key))
        for key in dict.fromkeys([*ours, *theirs])
        if ours.get(key) != theirs.get(key)
    }
