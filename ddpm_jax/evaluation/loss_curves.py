"""Whether the loss of a run is that of its recipe: curves of the loss in each band of t.

A curve holds the mean of the logged values in windows of steps, and their spread. The windows end
at 10, 20, 50, 100, 200, 500, ... steps.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ddpm_jax.errors import check
from ddpm_jax.settings_json import differences
from ddpm_jax.training.loss_bands import BANDS, band_edges

MIN_RECORDS = 5
"""Logged values in a window that has a mean and a spread."""
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


class LossCurve(NamedTuple):
    """The loss in windows of steps: the mean of the logged values, and their standard deviation."""

    ends: Int[np.ndarray, " w"]
    """The last step of each window."""
    mean: Float[np.ndarray, "w 8"]
    spread: Float[np.ndarray, "w 8"]


class Verdict(NamedTuple):
    """The distances of two curves by bands of t, in the last window that both have."""

    window: int
    """The row of the window in the recipe's curve."""
    distances: Float[np.ndarray, " 8"]
    """The difference of the means in each band, divided by the recipe's spread there."""

    @property
    def is_within(self) -> bool:
        """Whether the curve is within one spread of the recipe's in each band."""
        return bool(np.all(np.abs(self.distances) <= 1))


def make_curve(records: Sequence[Mapping[str, Any]]) -> LossCurve:
    """The curve of the records of a metrics.jsonl.

    Raise ValueError if no window has `MIN_RECORDS` records with the loss by bands.
    """
    logged = [record for record in records if record.get("loss_bands") is not None]
    steps = np.array([record["step"] for record in logged])
    losses = np.array([record["loss_bands"] for record in logged], float).reshape(-1, BANDS)
    ends, rows = [], []
    start = 0
    for end in window_ends(int(steps.max(initial=0))):
        inside = losses[(steps > start) & (steps <= end)]
        if np.all(np.isfinite(inside).sum(0) >= MIN_RECORDS):
            ends.append(end)
            rows.append((np.nanmean(inside, 0), np.nanstd(inside, 0, ddof=1)))
        start = end
    check(
        bool(rows),
        "The run has logged too few losses by bands of t: train it longer, or set a lower "
        "--log.every.",
    )
    mean, spread = np.stack(rows, 1)
    return LossCurve(np.array(ends), mean, spread)


def window_ends(last: int) -> list[int]:
    """10, 20, 50, 100, ... up to the last step."""
    scales = 10 ** np.arange(1, 10)
    return [int(end) for end in np.outer(scales, (1, 2, 5)).ravel() if end <= last]


def compare(recipe: LossCurve, ours: LossCurve) -> Verdict:
    """Compare the last window that both curves have. Raise ValueError if there is none."""
    shared = sorted(set(recipe.ends.tolist()) & set(ours.ends.tolist()))
    check(
        bool(shared),
        f"The run has no window of steps in common with the recipe's curve, which has those to "
        f"{', '.join(f'{end:,}' for end in recipe.ends)}: train it longer.",
    )
    theirs = int(np.flatnonzero(recipe.ends == shared[-1])[0])
    own = int(np.flatnonzero(ours.ends == shared[-1])[0])
    difference = ours.mean[own] - recipe.mean[theirs]
    return Verdict(theirs, difference / recipe.spread[theirs])


def describe(name: str, recipe: LossCurve, verdict: Verdict, timesteps: int) -> str:
    """The verdict in one line."""
    edges = band_edges(timesteps)
    ends = [0, *recipe.ends]
    steps = f"steps {ends[verdict.window] + 1:,} to {ends[verdict.window + 1]:,}"
    distances = verdict.distances
    outside = np.flatnonzero(np.abs(distances) > 1)
    shown = outside if len(outside) else [int(np.argmax(np.abs(distances)))]
    parts = [
        f"{abs(distances[i]):.1f} spreads {'above' if distances[i] > 0 else 'below'} at t from "
        f"{edges[i]} to {edges[i + 1] - 1}"
        for i in shown
    ]
    if verdict.is_within:
        return f"The loss is within the spread of recipe {name}, {steps}: at most {parts[0]}."
    return f"The loss is outside the spread of recipe {name}, {steps}: {', '.join(parts)}."


def to_json(curve: LossCurve, config: Mapping[str, Any]) -> dict[str, Any]:
    """A curve as JSON, with four digits and the settings of its run on which the loss depends."""

    def rounded(rows: np.ndarray) -> list[list[float]]:
        return [[float(f"{x:.4g}") for x in row] for row in rows]

    return {
        "config": _settings_of_the_loss(config),
        "ends": curve.ends.tolist(),
        "mean": rounded(curve.mean),
        "spread": rounded(curve.spread),
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
    return LossCurve(np.array(value["ends"]), mean, spread)


def find_curve(
    config: Mapping[str, Any], curves: Mapping[str, Mapping[str, Any]]
) -> tuple[str, LossCurve]:
    """The recipe's name and its curve, among {name: what `to_json` wrote}, for a run's settings.

    Raise ValueError, with the settings that differ from the nearest recipe, if there is none.
    """
    different = {
        name: [
            setting
            for setting in differences(dict(config), value["config"])
            if not setting.startswith(NOT_OF_THE_LOSS)
        ]
        for name, value in curves.items()
    }
    name = min(different, key=lambda name: len(different[name]))
    check(
        not different[name],
        f"No recipe with a loss curve has the settings of this run: {name}, the nearest, differs "
        f"in {', '.join(different[name][:5])}.",
    )
    return name, from_json(curves[name])
