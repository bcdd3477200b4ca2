"""Figures with axes or labels: curves, labelled rows of pictures. Drawn without pyplot, so without a screen."""

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ddpm_jax.figures.image_grids import image_grid
from ddpm_jax.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 128  # a power of two: pixels / DPI is exact in binary, so a figure gets exactly the pixels asked for


def loss_curve(
    steps: Sequence | np.ndarray, losses: Sequence | np.ndarray, path: str | os.PathLike, title: str
) -> None:
    """Leaves a PNG with the loss over the step, linear on the left and logarithmic on the right.

    A loss that is not finite is a gap, as is one without a logarithm on the right.
    Raises ValueError when there is no loss, or not one for each step.
    """
    steps, losses = np.asarray(steps, np.float64), np.asarray(losses, np.float64)
    if steps.ndim != 1 or steps.shape != losses.shape or not steps.size:
        raise ValueError(
            f"A curve needs one loss a step, but has {losses.size} losses for {steps.size} steps."
        )
    losses = np.where(np.isfinite(losses), losses, np.nan)
    figure = _figure(figsize=(10.5, 4.0), layout="constrained")
    figure.suptitle(title, fontweight="bold", parse_math=False)  # a directory may be called a$b$
    for axes, scale in zip(figure.subplots(1, 2), ("linear", "log"), strict=True):
        _draw_loss(axes, steps, losses, scale)
    _save_figure(figure, path)


def bound_curve(terms: Sequence | np.ndarray, path: str | os.PathLike, title: str) -> None:
    """Leaves a PNG with the terms (T,) of the variational bound, in bits a dimension, over t, both logarithmic.

    t is counted from 1, as in the papers. Raises ValueError when no term is above 0, or there is not one a timestep.
    """
    terms = np.asarray(terms, np.float64)
    if terms.ndim != 1 or not np.any(terms > 0):
        raise ValueError(
            f"A bound needs one term a timestep, some above 0, but these have the shape {terms.shape}."
        )
    figure = _figure(figsize=(6.4, 4.0), layout="constrained")
    figure.suptitle(title, fontweight="bold", parse_math=False)
    axes = figure.subplots()
    drawn = np.where(terms > 0, terms, np.nan)
    axes.plot(
        np.arange(1, len(terms) + 1),
        drawn,
        color="#1f4e79",
        linewidth=1.6,
        marker="." if len(terms) < 50 else None,
    )
    axes.set(xlabel="t, from data to noise", ylabel="bits a dimension", xscale="log", yscale="log")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    _save_figure(figure, path)


def labelled_rows(rows: Sequence[tuple[str, np.ndarray]], path: str | os.PathLike) -> None:
    """Leaves a PNG with one row of pictures (uint8, "n h w c") an entry, its label to the left.

    A label may hold TeX between dollar signs. Raises ValueError when there is no row.
    """
    if not rows:
        raise ValueError("A figure of rows needs at least one row, but has none.")
    strips = [
        np.asarray(image_grid(images, columns=len(images)).convert("RGB")) for _, images in rows
    ]
    figure = _figure()
    labels = [figure.text(0, 0, label, fontsize=9, ha="right", va="center") for label, _ in rows]
    margin = 10
    indent = 2 * margin + math.ceil(max(label.get_window_extent().width for label in labels))
    width, height = (
        indent + margin + max(s.shape[1] for s in strips),
        2 * margin + sum(s.shape[0] for s in strips),
    )
    figure.set_size_inches(width / DPI, height / DPI)
    bottom = height - margin
    for label, strip in zip(labels, strips, strict=True):
        bottom -= strip.shape[0]
        figure.figimage(
            strip, indent, bottom, origin="upper"
        )  # figimage does not resample: pixels stay sharp
        label.set_position(((indent - margin) / width, (bottom + strip.shape[0] / 2) / height))
    _save_figure(figure, path)


def _draw_loss(axes: "Axes", steps: np.ndarray, losses: np.ndarray, scale: str) -> None:
    """Draws the raw losses faintly and their running mean over them."""
    mean, window = _running_mean(losses)
    if scale == "log":  # matplotlib warns when it finds nothing that has a logarithm
        losses, mean = (np.where(values > 0, values, np.nan) for values in (losses, mean))
    marker = "." if len(steps) <= 50 else None  # a lone point has no line to be seen by
    axes.plot(
        steps, losses, color="#4c78a8", alpha=0.3, linewidth=0.8, marker=marker, label="each entry"
    )
    axes.plot(steps, mean, color="#1f4e79", linewidth=1.6, marker=marker, label=f"mean of {window}")
    axes.set(
        xlabel="step", ylabel="loss" if scale == "linear" else "loss (log scale)", yscale=scale
    )
    axes.locator_params(axis="x", integer=True, nbins=6, min_n_ticks=1)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper right")


def _running_mean(values: np.ndarray) -> tuple[np.ndarray, int]:
    """The mean of the finite values in a centred window, and the window's odd length: about sqrt(n), at most 501.

    Summed anew at each place: with differences of a cumulative sum, one spike of 1e20 would spoil all that follows.
    """
    window = min(math.isqrt(len(values)), 500) | 1
    finite, ones = np.isfinite(values), np.ones(window)
    count = np.rint(np.convolve(finite, ones, mode="same"))
    total = np.convolve(np.where(finite, values, 0.0), ones, mode="same")
    return np.where(count > 0, total / np.maximum(count, 1), np.nan), window


def _figure(**options) -> "Figure":
    """A figure with an Agg canvas: pyplot would keep every figure alive and might ask for a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(dpi=DPI, **options)
    FigureCanvasAgg(figure)
    return figure


def _save_figure(figure: "Figure", path: str | os.PathLike) -> None:
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=DPI, facecolor="white")
