"""Rows that compare us with diffusers on PyTorch: training, forward pass, sampling."""

import contextlib
import itertools
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from rows import OURS, TORCH, Goal, Net, Row
from sides import Side, ratio

ROWS = ("training", "forward", "sampling")
ROWS_WITH_OLDER_JAX = ("training", "forward")
DDIM_STEPS = 50
FORWARD_PASSES = 5


class Work(NamedTuple):
    """Work that both sides can do, by the function `function(*arguments)` of their scripts."""

    description: str
    repeats: int
    """Repetitions in one call, by which the seconds of a call are divided."""
    function: str
    arguments: tuple[int, ...]
    goal: float
    """Lowest speed relative to PyTorch that meets the goal."""


def work_by_row(net: Net) -> dict[str, Work]:
    """The work of each row for a network."""
    steps = net.steps_per_turn
    images = net.num_images
    return {
        "training": Work(
            f"training step of {net.batch_size} images",
            steps,
            "train",
            (steps,),
            goal=net.training_goal,
        ),
        "forward": Work(
            f"forward pass of {net.batch_size} images",
            FORWARD_PASSES,
            "forward",
            (FORWARD_PASSES,),
            goal=1.1,
        ),
        "sampling": Work(
            f"{DDIM_STEPS} DDIM steps of {images} images",
            1,
            "sample",
            (DDIM_STEPS, images),
            goal=1.3,
        ),
    }


def speed(
    net: Net, rows: list[str], pairs: int, torch_python: str, older_python: str | None
) -> Iterator[Row]:
    """Measure PyTorch's seconds divided by ours for each kind of work.

    With `older_python`, some work is also measured with the older JAX of that environment.
    """
    for name, work in work_by_row(net).items():
        if name not in rows:
            continue
        pythons = [sys.executable]
        if older_python and name in ROWS_WITH_OLDER_JAX:
            pythons.append(older_python)
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            theirs = stack.enter_context(Side(torch_python, TORCH))
            ours = [stack.enter_context(Side(python, OURS)) for python in pythons]
            for side in ours:
                side.ask("load", net.recipe, net.batch_size, folder, sampling=name != "training")
            clip_norm = ours[0].ask("clip_norm")
            theirs.ask("load", folder, net.batch_size, clip_norm=clip_norm)
            # A few sampling steps are enough to compare PyTorch's modes.
            trial = (5, net.num_images) if work.function == "sample" else work.arguments
            mode = use_fastest_mode(theirs, work.function, trial)
            for side in ours:
                result = ratio(
                    partial(theirs.ask, work.function, *work.arguments),
                    partial(side.ask, work.function, *work.arguments),
                    pairs,
                )
                torch_seconds, our_seconds = (seconds / work.repeats for seconds in result.medians)
                version = side.ask("versions")["jax"]
                details = f"PyTorch {torch_seconds:.3f} s ({mode})"
                details += f", JAX {version} {our_seconds:.3f} s"
                measurement = f"speed relative to PyTorch: {work.description}"
                yield Row(measurement, net.recipe, result, Goal(">=", work.goal), details)


def use_fastest_mode(theirs: Side, function: str, arguments: tuple[int, ...]) -> str:
    """Set PyTorch to its fastest mode for this work, and return the mode's name."""
    seconds = {}
    for mode in itertools.product((False, True), repeat=2):
        theirs.ask("use", *mode)
        # The first call compiles.
        theirs.ask(function, *arguments)
        seconds[mode] = min(theirs.ask(function, *arguments) for _ in range(2))
    fastest = min(seconds, key=lambda mode: seconds[mode])
    theirs.ask("use", *fastest)
    compiled, channels_last = fastest
    execution = "compiled" if compiled else "eager"
    layout = "channels last" if channels_last else "contiguous"
    return f"{execution}, {layout}"
