"""Draw plots with axes or labels. They need no pyplot and no display."""

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

DPI = 128
"""A power of two, so that pixels / DPI is exact and a figure gets exactly that many pixels."""
MARGIN = 10
TITLE_HEIGHT = 16
DARK_BLUE = "#1f4e79"
LIGHT_BLUE = "#4c78a8"
DARK_RED = "#a83232"


def loss_curve(
    steps: Sequence | np.ndarray, losses: Sequence | np.ndarray, path: str | os.PathLike, title: str
) -> None:
    """Write a PNG of the loss over the steps: linear scale on the left, logarithmic on the right.

    A non-finite loss is a gap; on the logarithmic scale, so is a loss that is not positive. Raise
    ValueError if there is no loss, or not one for each step.
    """
    steps = np.asarray(steps, np.float64)
    losses = np.asarray(losses, np.float64)
    if steps.ndim != 1 or steps.shape != losses.shape or not steps.size:
        raise ValueError(
            f"There are {losses.size} losses for {steps.size} steps: give one loss a step."
        )
    losses = np.where(np.isfinite(losses), losses, np.nan)
    figure = _figure(figsize=(10.5, 4.0), layout="constrained")
    # The title may be the name of a directory, such as a$b$, which is not TeX.
    figure.suptitle(title, fontweight="bold", parse_math=False)
    for axes, scale in zip(figure.subplots(1, 2), ("linear", "log"), strict=True):
        _draw_loss(axes, steps, losses, scale)
    _save_figure(figure, path)


def band_curves(
    curves: Sequence[tuple[str, np.ndarray, np.ndarray]],
    spread: np.ndarray,
    titles: Sequence[str],
    path: str | os.PathLike,
    title: str,
) -> None:
    """Write a PNG with a panel per band of t: the losses of two curves over the steps.

    A curve is its name, its steps (w,) and its losses (w, bands). A coloured area shows `spread`
    (w, bands) around the first one. `titles` are those of the panels. All axes are logarithmic.
    Raise ValueError unless there are two curves.
    """
    figure = _figure(figsize=(12.0, 5.5), layout="constrained")
    figure.suptitle(title, fontweight="bold", parse_math=False)
    panels = figure.subplots(2, len(titles) // 2, sharex=True)
    for band, (axes, panel_title) in enumerate(zip(panels.flat, titles, strict=True)):
        _, steps, losses = curves[0]
        low, high = losses[:, band] - spread[:, band], losses[:, band] + spread[:, band]
        lowest = losses[:, band] / 10  # a logarithmic axis has no 0
        axes.fill_between(steps, np.maximum(low, lowest), high, color=LIGHT_BLUE, alpha=0.25)
        for (name, steps, losses), color in zip(curves, (LIGHT_BLUE, DARK_RED), strict=True):
            axes.plot(steps, losses[:, band], color=color, marker=".", linewidth=1.4, label=name)
        axes.set(title=panel_title, xscale="log", yscale="log")
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels.flat[0].legend(frameon=False)
    for axes in panels[-1]:
        axes.set_xlabel("step")
    _save_figure(figure, path)


def bound_curve(terms: Sequence | np.ndarray, path: str | os.PathLike, title: str) -> None:
    """Write a PNG of the terms (T,) of the variational bound over t, in bits per dimension.

    Both axes are logarithmic, and t is counted from 1, as in the papers. Raise ValueError unless
    `terms` has one axis and a term above 0.
    """
    terms = np.asarray(terms, np.float64)
    if terms.ndim != 1 or not np.any(terms > 0):
        raise ValueError(
            f"Terms of shape {terms.shape} cannot be drawn: give one term a timestep, some above 0."
        )
    figure = _figure(figsize=(6.4, 4.0), layout="constrained")
    figure.suptitle(title, fontweight="bold", parse_math=False)
    axes = figure.subplots()
    t = np.arange(1, len(terms) + 1)
    drawn = np.where(terms > 0, terms, np.nan)
    marker = "." if len(terms) < 50 else None
    axes.plot(t, drawn, color=DARK_BLUE, linewidth=1.6, marker=marker)
    axes.set(xlabel="t, from data to noise", ylabel="bits per dimension")
    axes.set(xscale="log", yscale="log")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    _save_figure(figure, path)


def labelled_rows(
    rows: Sequence[tuple[str, np.ndarray]], path: str | os.PathLike, titles: Sequence[str] = ()
) -> None:
    """Write a PNG with one row of images (uint8, "n h w c") per entry, its label to the left.

    `titles` are written above the columns. Labels and titles may hold TeX between dollar signs.
    Raise ValueError if there is no row.
    """
    if not rows:
        raise ValueError("There is nothing to draw: give at least one row.")
    strips = [
        np.asarray(image_grid(images, columns=len(images)).convert("RGB")) for _, images in rows
    ]
    figure = _figure()
    labels = [figure.text(0, 0, label, fontsize=9, ha="right", va="center") for label, _ in rows]
    label_width = max(label.get_window_extent().width for label in labels)
    indent = 2 * MARGIN + math.ceil(label_width)
    width = indent + MARGIN + max(strip.shape[1] for strip in strips)
    header = TITLE_HEIGHT if titles else 0
    height = 2 * MARGIN + header + sum(strip.shape[0] for strip in strips)
    figure.set_size_inches(width / DPI, height / DPI)
    bottom = height - MARGIN - header
    for i, title in enumerate(titles):
        centre = indent + (i + 0.5) * strips[0].shape[1] / len(titles)
        figure.text(centre / width, bottom / height, title, fontsize=8, ha="center", va="bottom")
    for label, strip in zip(labels, strips, strict=True):
        bottom -= strip.shape[0]
        # figimage does not interpolate, so each pixel keeps its value.
        figure.figimage(strip, indent, bottom, origin="upper")
        label.set_position(((indent - MARGIN) / width, (bottom + strip.shape[0] / 2) / height))
    _save_figure(figure, path)


def _draw_loss(axes: "Axes", steps: np.ndarray, losses: np.ndarray, scale: str) -> None:
    """Draw the losses in a light colour, and their running mean on top."""
    mean, window = _running_mean(losses)
    if scale == "log":
        # matplotlib warns if no value has a logarithm.
        losses = np.where(losses > 0, losses, np.nan)
        mean = np.where(mean > 0, mean, np.nan)
    # Short curves need markers, because a line does not show a single point.
    marker = "." if len(steps) <= 50 else None
    axes.plot(
        steps, losses, color=LIGHT_BLUE, alpha=0.3, linewidth=0.8, marker=marker, label="each entry"
    )
    axes.plot(steps, mean, color=DARK_BLUE, linewidth=1.6, marker=marker, label=f"mean of {window}")
    ylabel = "loss" if scale == "linear" else "loss (log scale)"
    axes.set(xlabel="step", ylabel=ylabel, yscale=scale)
    axes.locator_params(axis="x", integer=True, nbins=6, min_n_ticks=1)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper right")


def _running_mean(values: np.ndarray) -> tuple[np.ndarray, int]:
    """The mean of the finite values in a centred window, and the window's length.

    The length is odd, about sqrt(n) and at most 501.
    """
    window = min(math.isqrt(len(values)), 500) | 1
    finite = np.isfinite(values)
    ones = np.ones(window)
    # Sum each window anew: in differences of a cumulative sum, one spike of 1e20 would destroy all
    # later means.
    n = np.rint(np.convolve(finite, ones, mode="same"))
    total = np.convolve(np.where(finite, values, 0.0), ones, mode="same")
    return np.where(n > 0, total / np.maximum(n, 1), np.nan), window


def _figure(**options) -> "Figure":
    """A figure with an Agg canvas.

    pyplot would keep every figure in memory, and might need a display.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(dpi=DPI, **options)
    FigureCanvasAgg(figure)
    return figure


def _save_figure(figure: "Figure", path: str | os.PathLike) -> None:
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=DPI, facecolor="white")
