"""The rows about our own costs: the sampling loop, the input pipeline, checkpoints, accumulation, pmap, devices."""

import statistics
import sys
from collections.abc import Iterator
from functools import partial

from rows import OURS, Goal, Net, Row
from sides import Ratio, Side, ratio

LOOP_STEPS, LOOP_BATCH = 50, 16
BATCHES_FED = 200
STEPS_WATCHED = 10
ACCUMULATION = 4


def loop(net: Net, pairs: int) -> Iterator[Row]:
    """A sampling scan over as many forward passes, each jitted by itself."""
    for sampler in ("ddpm", "ddim"):
        with Side(sys.executable, OURS) as ours:
            found = Ratio(*ours.ask("loop_tax", net.recipe, sampler, LOOP_STEPS, LOOP_BATCH, pairs))
        what = f"{sampler}'s scan of {LOOP_STEPS} steps over {LOOP_STEPS} forward passes"
        yield Row(
            what,
            net.recipe,
            found,
            Goal("<=", 1.02),
            f"{found.seconds[0]:.2f} s, {LOOP_BATCH} pictures",
        )


def input_pipeline(net: Net, pairs: int) -> Iterator[Row]:
    """Batches from memory: how much faster they are made than the step takes them, and how long it waits for them."""
    share = net.turns / BATCHES_FED
    with Side(sys.executable, OURS) as ours:
        ours.ask("load", net.recipe, net.batch_size)
        found = ratio(
            partial(ours.ask, "train", net.turns),
            lambda: share * ours.ask("feed", BATCHES_FED),
            pairs,
        )
        used, made = (net.batch_size * net.turns / seconds for seconds in found.seconds)
        how = f"{made:,.0f} images/s made, {used:,.0f} used"
        yield Row(
            "input pipeline alone over what the step takes", net.recipe, found, Goal(">=", 3), how
        )
        waited = 100 * ours.ask("wait", STEPS_WATCHED)
        what = "share of a training step spent waiting for data"
        yield Row(
            what,
            net.recipe,
            waited,
            Goal("<=", 2),
            f"of {STEPS_WATCHED} steps, the first included",
            "%",
        )


def saving(net: Net, pairs: int) -> Iterator[Row]:
    """How long it takes to save a checkpoint, for which training waits unless told not to."""
    with Side(sys.executable, OURS) as ours:
        ours.ask("load", net.recipe, net.batch_size)
        turns = [(ours.ask("save", True), ours.ask("save", False)) for _ in range(pairs)]
    waited, copied = (
        statistics.median(seconds for seconds, _ in times) for times in zip(*turns, strict=True)
    )
    size = turns[0][0][1] / 2**20
    how = f"{size:.0f} MiB; with --checkpoint.no-wait training goes on after {copied:.2f} s"
    yield Row("a checkpoint, until it is whole on disk", net.recipe, waited, None, how, " s")


def accumulation(net: Net, pairs: int) -> Iterator[Row]:
    """A step of several micro-batches over as many steps of one."""
    with Side(sys.executable, OURS) as summed, Side(sys.executable, OURS) as plain:
        summed.ask("load", net.recipe, net.batch_size, accumulation=ACCUMULATION)
        plain.ask("load", net.recipe, net.batch_size)
        found = ratio(
            partial(summed.ask, "train", 1), partial(plain.ask, "train", ACCUMULATION), pairs
        )
    what = f"a step of {ACCUMULATION} micro-batches over {ACCUMULATION} steps"
    yield Row(
        what,
        net.recipe,
        found,
        Goal("<=", 1.05),
        f"micro-batches of {net.batch_size}, {of_seconds(found)}",
    )


def routes(net: Net, pairs: int) -> Iterator[Row]:
    """The training step by pmap on one device over the same under jit."""
    with Side(sys.executable, OURS) as mapped, Side(sys.executable, OURS) as plain:
        for side, route in ((mapped, "pmap"), (plain, "jit")):
            side.ask("load", net.recipe, net.batch_size, devices=1, route=route)
        found = ratio(
            partial(mapped.ask, "train", net.turns), partial(plain.ask, "train", net.turns), pairs
        )
    how = f"{net.turns} steps of {net.batch_size}, {of_seconds(found)}"
    yield Row("pmap on one device over jit", net.recipe, found, Goal("<=", 1.02), how)


def devices(net: Net, pairs: int) -> Iterator[Row]:
    """The training step on one device of the CPU over that on two, beside the number that train.py takes."""
    with Side(sys.executable, OURS) as one, Side(sys.executable, OURS) as two:
        chosen = one.ask("load", net.recipe, net.batch_size, devices=1)
        two.ask("load", net.recipe, net.batch_size, devices=2)
        found = ratio(
            partial(one.ask, "train", net.turns), partial(two.ask, "train", net.turns), pairs
        )
    how = f"{of_seconds(found)}; {chosen} for each two cores is what train.py takes"
    yield Row(
        f"training step of {net.batch_size} on one device over that on two",
        net.recipe,
        found,
        None,
        how,
    )


def of_seconds(found: Ratio) -> str:
    """Both sides of a ratio in seconds."""
    above, below = found.seconds
    return f"{above:.2f} s over {below:.2f} s"
