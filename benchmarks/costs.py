"""Rows about our overheads: sampling loop, input pipeline, saving, accumulation, pmap, devices."""

import statistics
import sys
from collections.abc import Iterator
from functools import partial

from rows import OURS, Goal, Net, Row
from sides import Ratio, Side, ratio

LOOP_STEPS = 50
LOOP_BATCH_SIZE = 16
BATCHES_FED = 200
STEPS_WATCHED = 10
ACCUMULATION = 4


def loop(net: Net, pairs: int) -> Iterator[Row]:
    """Measure the time of a sampling scan relative to as many separate forward passes."""
    for sampler in ("ddpm", "ddim"):
        with Side(sys.executable, OURS) as ours:
            result = Ratio(
                *ours.ask("loop_overhead", net.recipe, sampler, LOOP_STEPS, LOOP_BATCH_SIZE, pairs)
            )
        measurement = (
            f"{sampler}: time of a scan of {LOOP_STEPS} steps, "
            f"relative to {LOOP_STEPS} forward passes"
        )
        details = f"{result.medians[0]:.2f} s per scan, {LOOP_BATCH_SIZE} images"
        yield Row(measurement, net.recipe, result, Goal("<=", 1.02), details)


def input_pipeline(net: Net, pairs: int) -> Iterator[Row]:
    """Measure how much faster batches are made than used, and how long training waits for them."""
    steps = net.steps_per_turn
    fraction = steps / BATCHES_FED
    with Side(sys.executable, OURS) as ours:
        ours.ask("load", net.recipe, net.batch_size)
        result = ratio(
            partial(ours.ask, "train", steps),
            lambda: fraction * ours.ask("feed", BATCHES_FED),
            pairs,
        )
        used, made = (net.batch_size * steps / seconds for seconds in result.medians)
        measurement = "speed of making batches from images in memory, relative to the training step"
        details = f"{made:,.0f} images/s made, {used:,.0f} images/s used"
        yield Row(measurement, net.recipe, result, Goal(">=", 3), details)
        percent_waited = 100 * ours.ask("wait", STEPS_WATCHED)
        measurement = "fraction of training time spent waiting for data"
        details = f"of {STEPS_WATCHED} steps, including the first"
        yield Row(measurement, net.recipe, percent_waited, Goal("<=", 2), details, "%")


def saving(net: Net, pairs: int) -> Iterator[Row]:
    """Measure how long saving a checkpoint takes; training waits for it by default."""
    with Side(sys.executable, OURS) as ours:
        ours.ask("load", net.recipe, net.batch_size)
        turns = [(ours.ask("save", True), ours.ask("save", False)) for _ in range(pairs)]
    saved, copied = (
        statistics.median(seconds for seconds, _ in times) for times in zip(*turns, strict=True)
    )
    size = turns[0][0][1] / 2**20
    details = (
        f"a state of {size:.0f} MiB; with --checkpoint.no-wait training continues "
        f"after {copied:.2f} s"
    )
    yield Row("saving a checkpoint", net.recipe, saved, None, details, " s")


def accumulation(net: Net, pairs: int) -> Iterator[Row]:
    """Measure the time of a step of several micro-batches relative to as many plain steps."""
    with Side(sys.executable, OURS) as accumulated, Side(sys.executable, OURS) as plain:
        accumulated.ask("load", net.recipe, net.batch_size, accumulation=ACCUMULATION)
        plain.ask("load", net.recipe, net.batch_size)
        result = ratio(
            partial(accumulated.ask, "train", 1), partial(plain.ask, "train", ACCUMULATION), pairs
        )
    measurement = (
        f"time of one step of {ACCUMULATION} micro-batches, relative to {ACCUMULATION} steps"
    )
    details = f"micro-batches of {net.batch_size} images, {describe_seconds(result)}"
    yield Row(measurement, net.recipe, result, Goal("<=", 1.05), details)


def routes(net: Net, pairs: int) -> Iterator[Row]:
    """Measure the time of the training step under pmap on one device relative to jit."""
    with Side(sys.executable, OURS) as pmap, Side(sys.executable, OURS) as jit:
        for side, route in ((pmap, "pmap"), (jit, "jit")):
            side.ask("load", net.recipe, net.batch_size, devices=1, route=route)
        result = ratio(
            partial(pmap.ask, "train", net.steps_per_turn),
            partial(jit.ask, "train", net.steps_per_turn),
            pairs,
        )
    measurement = "time of training steps under pmap on one device, relative to jit"
    details = f"{net.steps_per_turn} steps of {net.batch_size} images, {describe_seconds(result)}"
    yield Row(measurement, net.recipe, result, Goal("<=", 1.02), details)


def devices(net: Net, pairs: int) -> Iterator[Row]:
    """Measure the time of the training step on one virtual CPU device relative to two."""
    with Side(sys.executable, OURS) as one, Side(sys.executable, OURS) as two:
        default = one.ask("load", net.recipe, net.batch_size, devices=1)
        two.ask("load", net.recipe, net.batch_size, devices=2)
        result = ratio(
            partial(one.ask, "train", net.steps_per_turn),
            partial(two.ask, "train", net.steps_per_turn),
            pairs,
        )
    measurement = (
        f"time of a training step of {net.batch_size} images on one device, relative to two"
    )
    details = f"{describe_seconds(result)}; devices of train.py per two cores: {default}"
    yield Row(measurement, net.recipe, result, None, details)


def describe_seconds(result: Ratio) -> str:
    """The median seconds of both sides of a ratio."""
    above, below = result.medians
    return f"{above:.2f} s against {below:.2f} s"
