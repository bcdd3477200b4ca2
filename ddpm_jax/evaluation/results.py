"""Results of a measurement as tables, and whether two of them can be compared."""

import json
from collections import ChainMap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddpm_jax.errors import check
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.settings_json import to_json

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
SPEED_RUNS = 3
"""Batches that are timed."""
OF_SAMPLES = (
    "n",
    "features",
    "features_weights",
    "features_resize",
    "against",
    "sampling",
    "conditions",
)
OF_BITS = ("bits_num", "against", "variance")
OF_LOSS = ("bits_num", "against", "objective")
MADE_WITH = {
    **dict.fromkeys(("frechet", "kid", "precision", "recall", "nearest_ratio"), OF_SAMPLES),
    "bits_per_dim": OF_BITS,
    "ode_bits_per_dim": OF_BITS,
    "loss": OF_LOSS,
    "images_per_second": ("sampling", "batch_size", "device"),
}
"""{number: what must be equal to compare it}."""
UNKNOWN = {"sampling": {"sampler": "drawn elsewhere"}, "objective": {"target": "unknown"}}
"""{settings among these conditions: what stands for them where a result has none}."""
IDENTITY = ("measured", "step", "weights", "version")
"""Equal for all numbers of one JSON file: the network or the samples, and the code."""
ALSO_EQUAL = ("against_images", "against_split", "seeds", "bits_seed")
"""Conditions of numbers in one file, beyond those of comparisons."""


def numbers_of(result: Result) -> list[str]:
    """The numbers that a result has, in the order of tables."""
    return [key for key in LABELS if key in result]


def cell(result: Result, key: str) -> str:
    """A number with its error and its spread over seeds."""
    text = f"{result[key]:.5g}"
    spread = result.get(f"{key}_spread")
    if (error := result.get(f"{key}_error")) is not None:
        text += f" +- {error:.2g}" + ("" if spread is None else " for one seed")
    if spread is not None:
        sets = f"{SPEED_RUNS} batches" if key == "images_per_second" else _seeds(result)
        text += f" (+- {spread:.2g} over {sets})"
    return text


def _seeds(result: Result) -> str:
    return f"{len(result['seeds'])} seeds"


def measures_samples(key: str) -> bool:
    """Whether a number compares samples with reference images."""
    return MADE_WITH[key] is OF_SAMPLES


def images_of(result: Result, key: str) -> str:
    """The number of images from which a number was computed; a dash for a speed."""
    counts = {OF_SAMPLES: "n", OF_BITS: "bits_num", OF_LOSS: "bits_num"}
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
    lines = [f"{key}: {result[key]}" for key in ("network", "samples") if key in result]
    if "against" in result:
        images = f"{result['against_n']:,} images (hash {result['against_images']})"
        lines.insert(0, f"against: {result['against']}, {images}")
    if any(map(measures_samples, numbers_of(result))):
        weights = result["features_weights"] or "none"
        resize = result["features_resize"]
        lines.insert(0, f"features: {result['features']} (weights: {weights}, resize: {resize})")
    if "loss_bands" in result:
        bands = "  ".join(f"{loss:.4g}" for loss in result["loss_bands"])
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
        isinstance(result, dict) and bool(numbers_of(result)) and "version" in result,
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
        if key in UNKNOWN:
            found |= _setting_differences(key, a, b)
        elif _identity(a, key) != _identity(b, key):
            found[key] = (_shown(a, key), _shown(b, key))
    return found


def _identity(result: Result, key: str) -> Any:
    """A reference is known by its images, wherever they are."""
    return result.get("against_images" if key == "against" else key)


def _shown(result: Result, key: str) -> Any:
    if key == "against":
        return f"{result['against']}, {result['against_n']:,} images"
    return result.get(key)


def _setting_differences(group: str, a: Result, b: Result) -> dict[str, tuple[Any, Any]]:
    unknown = UNKNOWN[group]
    ours, theirs = (result.get(group) or unknown for result in (a, b))
    keys = unknown if unknown in (ours, theirs) else dict.fromkeys([*ours, *theirs])
    # A result may be older than a setting of sampling, and was then made with its default.
    defaults = to_json(Sampling()) if group == "sampling" else {}
    pairs = {key: [each.get(key, defaults.get(key)) for each in (ours, theirs)] for key in keys}
    return {
        f"{group}.{key}": (first, second)
        for key, (first, second) in pairs.items()
        if first != second
    }


def merged(old: Result, new: Result) -> dict[str, Any] | None:
    """`new` with the numbers of an `old` result of the same network or samples.

    None if a condition of any number differs.
    """
    conditions = {key for made_with in MADE_WITH.values() for key in made_with} - {"against"}
    shared = [key for key in (*conditions, *ALSO_EQUAL) if key in old and key in new]
    if any(old.get(key) != new.get(key) for key in (*IDENTITY, *shared)):
        return None
    by_seed = [result["per_seed"] for result in (old, new) if "per_seed" in result]
    per_seed = [dict(ChainMap(*reversed(numbers))) for numbers in zip(*by_seed, strict=True)]
    return {**old, **new, **({"per_seed": per_seed} if per_seed else {})}
