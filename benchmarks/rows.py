"""Rows of the table: a measurement, its network, its goal, and whether the goal was met."""

import argparse
import os
import platform
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, SupportsFloat

FOLDER = Path(__file__).parent
OURS = str(FOLDER / "jax_side.py")
TORCH = str(FOLDER / "torch_side.py")
TORCH_PROCESS = str(FOLDER / "torch_process.py")
DEW = str(FOLDER / "dew_side.py")
HEAD = """| measurement | net | result | goal | met | details |
| --- | --- | --- | --- | --- | --- |"""


class Net(NamedTuple):
    """A recipe with the sizes at which it is measured."""

    recipe: str
    batch_size: int
    num_images: int
    """Images drawn at once by a sampler."""
    steps_per_turn: int
    """Training steps in each turn of a pair."""
    training_goal: float
    """Lowest speed of training relative to PyTorch that meets the goal."""


NETS = [
    Net("butterflies", 16, 16, 2, 1.2),
    Net("cifar10", 8, 8, 2, 1.2),
    Net("mnist", 128, 64, 2, 1.0),
]


class Goal(NamedTuple):
    """An inclusive bound for a measurement; `sign` is ">=" or "<="."""

    sign: str
    bound: float

    def is_met(self, value: float) -> bool:
        """Whether a value is within the bound."""
        return value >= self.bound if self.sign == ">=" else value <= self.bound


class Row(NamedTuple):
    """A row of the table. `result` is a number or a `Ratio`; `unit` is " s", "%" or empty."""

    measurement: str
    net: str
    result: SupportsFloat
    goal: Goal | None = None
    details: str = ""
    unit: str = ""

    def __str__(self) -> str:
        value = float(self.result)
        result = str(self.result)
        if isinstance(self.result, int):
            result = f"{self.result:,}{self.unit}"
        elif isinstance(self.result, float):
            result = f"{value:.3g}{self.unit}"
        goal = ""
        met = ""
        if self.goal is not None:
            goal = f"{self.goal.sign} {self.goal.bound:g}{self.unit}"
            met = "yes" if self.goal.is_met(value) else "no"
        return f"| {self.measurement} | {self.net} | {result} | {goal} | {met} | {self.details} |"


def for_each_net(description: str, compare: Callable[[Net, int], None]) -> None:
    """Call compare(net, pairs) for each of --recipes, with the number of --pairs."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [net.recipe for net in NETS]
    parser.add_argument("--recipes", nargs="+", choices=names, default=names)
    parser.add_argument("--pairs", type=int, default=7)
    options = parser.parse_args()
    for net in NETS:
        if net.recipe in options.recipes:
            compare(net, options.pairs)


def write_table(preface: str, rows: Iterable[Row], page: Path | None) -> None:
    """Print the table row by row, and rewrite the page, if there is one, after each row."""
    lines = [preface, "", HEAD]
    print("\n".join(lines), flush=True)
    for row in rows:
        lines.append(str(row))
        print(row, flush=True)
        if page is not None:
            page.write_text("\n".join(lines) + "\n")


def describe_machine() -> str:
    """The processor and the number of cores that this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores"
