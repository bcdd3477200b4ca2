"""Compare the logged loss of a run with that of its recipe, by band of t.

A curve holds the mean of the logged values in windows of steps, their spread and their number. The
windows end at 10, 20, 50, 100, 200, 500, ... steps.

The difference of two means is divided by its standard error. The bound is that of a t test in eight
bands, with the degrees of freedom of the shorter window: with any two variances, a correct run is
outside with a probability of at most `FALSE_ALARMS` (Mickey & Brown 1966). The test takes records
as independent. Those of one run are not quite: its parameters change slowly, and differ from run to
run, so a correct run may be outside more often.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.special
from jaxtyping import Bool, Float, Int

from ddpm_jax import settings_json
from ddpm_jax.config import RunConfig
from ddpm_jax.errors import check
from ddpm_jax.training.loss_bands import BANDS, band_edges

MIN_RECORDS = 5
"""Logged values in a window that has a mean and a spread."""
FALSE_ALARMS = 0.01
"""Probability that a correct run is outside in any band, at most, for independent records."""
NOT_OF_THE_LOSS = (
    "parallel",
    "checkpoint",
    "log",
    "evaluation",
    "ema",
    "sampling",
    "data.path",
    "data.data_dir",
    "training.seed",
    "training.skip_patience",
    "training.on_patience",
)
"""Prefixes of the settings on which the loss curve does not depend, beyond chance."""
LENGTH = ("training.steps", "training.epochs")
"""Settings on which it depends only where the learning rate falls until the last step."""


class LossCurve(NamedTuple):
    """The loss in windows of steps: mean, standard deviation and number of the logged values."""

    ends: Int[np.ndarray, " w"]
    """The last step of each window."""
    mean: Float[np.ndarray, "w 8"]
    spread: Float[np.ndarray, "w 8"]
    records: Int[np.ndarray, "w 8"]


class Verdict(NamedTuple):
    """The distances of two curves by bands of t, in the last window that both have."""

    end: int
    """The last step of the window."""
    distances: Float[np.ndarray, " 8"]
    """The difference of the means in each band, in standard errors."""
    bounds: Float[np.ndarray, " 8"]
    """The largest distance of a correct run, but for `FALSE_ALARMS`."""

    @property
    def outside(self) -> Bool[np.ndarray, " 8"]:
        """Whether the loss of each band differs from the recipe's by more than its bound."""
        return np.abs(self.distances) > self.bounds


def make_curve(records: Sequence[Mapping[str, Any]]) -> LossCurve:
    """The curve of the records of a metrics.jsonl.

    Raise ValueError if no window has `MIN_RECORDS` records with the loss by bands.
    """
    logged = [record for record in records if record.get("loss_bands") is not None]
    steps = np.array([record["step"] for record in logged])
    losses = np.array([record["loss_bands"] for record in logged], float).reshape(-1, BANDS)
    ends, rows = [], []
    for end in window_ends(int(steps.max(initial=0))):
        inside = losses[(steps > window_start(end)) & (steps <= end)]
        count = np.isfinite(inside).sum(0)
        if np.all(count >= MIN_RECORDS):
            ends.append(end)
            rows.append((np.nanmean(inside, 0), np.nanstd(inside, 0, ddof=1), count))
    check(
        bool(rows),
        "The run has logged too few losses by bands of t: train it longer, or set a lower "
        "--log.every.",
    )
    mean, spread, counts = map(np.stack, zip(*rows, strict=True))
    return LossCurve(np.array(ends), mean, spread, counts)


def window_ends(last: int) -> list[int]:
    """10, 20, 50, 100, ... up to the last step."""
    scales = 10 ** np.arange(1, 10)
    return [int(end) for end in np.outer(scales, (1, 2, 5)).ravel() if end <= last]


def window_start(end: int) -> int:
    """The step before the window that ends at `end`."""
    return max(window_ends(end - 1), default=0)


def compare(recipe: LossCurve, ours: LossCurve) -> Verdict:
    """Compare the last window that both curves have. Raise ValueError if there is none."""
    shared = sorted(set(recipe.ends.tolist()) & set(ours.ends.tolist()))
    check(
        bool(shared),
        f"The run has no window of steps in common with the recipe's curve, which has those to "
        f"{', '.join(f'{end:,}' for end in recipe.ends)}: train it longer.",
    )
    end = shared[-1]
    rows = [(curve, int(np.flatnonzero(curve.ends == end)[0])) for curve in (ours, recipe)]
    ours_mean, recipe_mean = (curve.mean[i] for curve, i in rows)
    squares = np.stack([curve.spread[i] ** 2 / curve.records[i] for curve, i in rows])  # (2, 8)
    variance = squares.sum(0)
    degrees = np.min([curve.records[i] for curve, i in rows], 0) - 1
    probability = 1 - FALSE_ALARMS / (2 * BANDS)  # of one side of one band
    bounds = scipy.special.stdtrit(degrees, probability)
    return Verdict(end, (ours_mean - recipe_mean) / np.sqrt(variance), bounds)


def describe(name: str, verdict: Verdict, timesteps: int) -> str:
    """The verdict in one line."""
    edges = band_edges(timesteps)
    steps = f"steps {window_start(verdict.end) + 1:,} to {verdict.end:,}"
    distances, bounds, outside = verdict.distances, verdict.bounds, verdict.outside
    furthest = [int(np.argmax(np.abs(distances) / bounds))]
    parts = [
        f"{abs(distances[i]):.1f} standard errors {'above' if distances[i] > 0 else 'below'} at t "
        f"from {edges[i]} to {edges[i + 1] - 1} (bound {bounds[i]:.1f})"
        for i in (np.flatnonzero(outside) if np.any(outside) else furthest)
    ]
    if np.any(outside):
        return f"The loss differs from that of recipe {name}, {steps}: {', '.join(parts)}."
    return f"The loss agrees with that of recipe {name}, {steps}: at most {parts[0]}."


def to_json(curve: LossCurve, config: Mapping[str, Any]) -> dict[str, Any]:
    """A curve as JSON, with four digits and the settings of its run on which the loss depends."""

    def rounded(rows: np.ndarray) -> list[list[float]]:
        return [[float(f"{x:.4g}") for x in row] for row in rows]

    return {
        "config": _settings_of_the_loss(config),
        "ends": curve.ends.tolist(),
        "mean": rounded(curve.mean),
        "spread": rounded(curve.spread),
        "records": curve.records.tolist(),
    }


def _settings_of_the_loss(settings: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """All settings but those in `NOT_OF_THE_LOSS`."""
    kept = {}
    for name, value in settings.items():
        if not f"{path}{name}".startswith(NOT_OF_THE_LOSS):
            is_group = isinstance(value, Mapping)
            kept[name] = _settings_of_the_loss(value, f"{path}{name}.") if is_group else value
    return kept


def from_json(value: Mapping[str, Any]) -> LossCurve:
    """Read a curve that `to_json` wrote."""
    mean, spread = (np.array(value[name], float) for name in ("mean", "spread"))
    return LossCurve(np.array(value["ends"]), mean, spread, np.array(value["records"]))


def find_curve(config: RunConfig, curves: Mapping[str, Mapping[str, Any]]) -> tuple[str, LossCurve]:
    """The recipe's name and its curve, among {name: what `to_json` wrote}, for a run's config.

    A curve that is older than a setting was made with its default. Raise ValueError, with the
    settings that differ from the nearest recipe, if there is none.
    """
    settings = settings_json.to_json(config)
    defaults = _defaults(config)
    different = {
        name: loss_differences(settings, _filled(value["config"], defaults))
        for name, value in curves.items()
    }
    name = min(different, key=lambda name: len(different[name]))
    check(
        not different[name],
        f"No recipe with a loss curve has the settings of this run ({name}, the nearest, differs "
        f"in {', '.join(different[name][:5])}): recipes with a curve are {', '.join(curves)}.",
    )
    return name, from_json(curves[name])


def _defaults(settings: Any) -> dict[str, Any]:
    """The defaults of the classes of these settings, as JSON. Some settings have none."""
    found = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            found[field.name] = _defaults(value)
        elif field.default is not dataclasses.MISSING:
            found[field.name] = settings_json.to_json(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = settings_json.to_json(field.default_factory())
    return found


def _filled(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a curve, with the default of each that it lacks."""
    filled = dict(defaults) | dict(settings)
    for name, value in settings.items():
        if isinstance(value, Mapping) and isinstance(defaults.get(name), Mapping):
            filled[name] = _filled(value, defaults[name])
    return filled


def loss_differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """The settings in which two configs differ and on which the loss depends, as dotted names."""
    different = settings_json.differences(dict(ours), dict(theirs))
    is_constant = ours["optimizer"]["decay"] == "constant"
    ignored = (*NOT_OF_THE_LOSS, *LENGTH) if is_constant else NOT_OF_THE_LOSS
    return [setting for setting in different if not setting.startswith(ignored)]
