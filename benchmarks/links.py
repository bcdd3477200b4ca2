"""Count the bytes that collectives of a compiled program send, and the time that the links take.

Each collective runs as a ring over the chips of its group. Chips are numbered machine by machine.
"""

import math
import re

import hlo
import numpy as np
from chip_kinds import Chip

LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]+)\}")
"""Groups as lists of chips, such as {{0,1},{2,3}}."""
ORDER = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
"""All chips in order, reshaped and perhaps transposed: [2,4]T(1,0) is 0, 4, 1, 5, ..."""
SPLIT = re.compile(rf"replica_groups=\[(\d+),(\d+)\]<={ORDER}")
"""Chips in an order, split: [4,2]<=[2,4]T(1,0) is {{0,4},{1,5},...}."""
BY_AXES = re.compile(
    rf"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({ORDER}\))? \{{([^}}]*)\}}"
)
"""Axes of a mesh of all chips, in their order or another, such as mesh['a'=2,'b'=4] {'b'}."""
ALL = "replica_groups={}"


def bytes_sent(kernel: hlo.Kernel, count: int) -> float:
    """The bytes that a chip sends for a kernel of a program for `count` chips."""
    if kernel.kind != "collective":
        return 0.0
    n = len(first_group(kernel.attributes, count))
    # Each of the n - 1 rounds of a ring sends one part of n; a sum over all needs two rings. The
    # result of a reduce-scatter is such a part, and a permutation sends its result once.
    parts = {"all-reduce": 2 / n, "reduce-scatter": 1, "collective-permute": 1}
    return (n - 1) * parts.get(kernel.operation, 1 / n) * kernel.result_bytes


def seconds_sending(kernel: hlo.Kernel, chip: Chip, shape: str) -> float:
    """The seconds that the links take for a kernel on a topology of this shape."""
    if kernel.kind != "collective":
        return 0.0
    count = num_chips(shape)
    group = first_group(kernel.attributes, count)
    return bytes_sent(kernel, count) / (1e9 * rate(chip, shape, group))


def num_chips(shape: str) -> int:
    """The number of chips of a topology."""
    return math.prod(_sides(shape))


def rate(chip: Chip, shape: str, group: list[int]) -> float:
    """The GB/s at which a chip sends to the others of its group.

    A TPU has two links per axis of its torus, but one along a side of two chips. GPUs of one
    machine send at the rate of their links. Between machines, the chips of a group on one machine
    share their adapters, each of which sends a part of every array.
    """
    sides = _sides(shape)
    if chip.platform == "tpu":
        return chip.link * sum(min(side - 1, 2) for side in sides) / (2 * len(sides))
    machines = {number // sides[-1] for number in group}
    if len(machines) == 1:
        return chip.link
    return min(chip.link, chip.adapter * len(group) / len(machines))


def first_group(attributes: str, count: int) -> list[int]:
    """The chips of the first group of a collective. Raise ValueError if they cannot be read."""
    chips = np.arange(count)
    if listed := LISTED.search(attributes):
        return _integers(listed[1])
    if split := SPLIT.search(attributes):
        return _in_order(chips, split[3], split[4])[: int(split[2])].tolist()
    if by_axes := BY_AXES.search(attributes):
        mesh = {name: int(side) for name, side in re.findall(r"('\w+')=(\d+)", by_axes[1])}
        named = by_axes[4].split(",")
        first = tuple(slice(None) if axis in named else 0 for axis in mesh)
        if set(named) <= set(mesh):
            if by_axes[2]:
                chips = _in_order(chips, by_axes[2], by_axes[3])
            return chips.reshape(list(mesh.values()))[first].ravel().tolist()
    if ALL in attributes:
        return chips.tolist()
    raise ValueError(f"Cannot read the groups of a collective: teach links.py {attributes[:200]}.")


def _in_order(chips: np.ndarray, sides: str, axes: str | None) -> np.ndarray:
    """The chips reshaped to `sides`, transposed by `axes` if there are any, and flattened."""
    reshaped = chips.reshape(_integers(sides))
    return (reshaped.transpose(_integers(axes)) if axes else reshaped).ravel()


def _integers(listed: str) -> list[int]:
    return [int(number) for number in listed.split(",")]


def _sides(shape: str) -> list[int]:
    return _integers(shape.replace("x", ","))
