"""Rows that compare us with dew, another JAX library: seconds per operation of a forward pass."""

import sys
from collections.abc import Iterator

from beside_torch import Work, work_by_row
from rows import DEW, OURS, Goal, Net, Row
from sides import Side, ratio

ROWS = ("training", "forward")
GOAL = 2.0


def speed(net: Net, pairs: int, dew_python: str) -> Iterator[Row]:
    """Measure dew's seconds per operation divided by ours, in training and in forward passes.

    The networks differ, so the seconds of each are divided by the operations of its forward pass.
    """
    with Side(dew_python, DEW) as theirs, Side(sys.executable, OURS) as ours:
        ours.ask("load", net.recipe, net.batch_size)
        network = ours.ask("network")
        shape = network["image_shape"]
        theirs.ask("load", shape, net.batch_size, network["widths"], network["attention"])
        work = work_by_row(net)
        for name in ROWS:
            yield compare(theirs, ours, net, work[name], pairs)


def compare(theirs: Side, ours: Side, net: Net, work: Work, pairs: int) -> Row:
    """The row for one kind of work."""
    their_parameters, their_operations = theirs.ask("size")
    our_parameters, our_operations = ours.ask("size")
    result = ratio(
        lambda: theirs.ask(work.function, *work.arguments) / work.repeats / their_operations,
        lambda: ours.ask(work.function, *work.arguments) / work.repeats / our_operations,
        pairs,
    )
    their_seconds, our_seconds = result.medians
    versions = theirs.ask("versions")
    details = (
        f"dew {versions['dew']} with JAX {versions['jax']}: {1e12 * their_seconds:.1f} ms per "
        f"GFLOP, {their_parameters:,} parameters, {their_operations / 1e9:.1f} GFLOP forward; "
        f"ours with JAX {ours.ask('versions')['jax']}: {1e12 * our_seconds:.1f} ms per "
        f"GFLOP, {our_parameters:,} parameters, {our_operations / 1e9:.1f} GFLOP forward"
    )
    measurement = f"speed per operation relative to dew: {work.description}"
    return Row(measurement, net.recipe, result, Goal(">=", GOAL), details)
