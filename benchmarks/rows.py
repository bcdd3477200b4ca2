"""What a line of the table says: a figure, of which net, its goal, and whether that was reached; and the nets."""

import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, SupportsFloat

FOLDER = Path(__file__).parent
OURS, TORCH = str(FOLDER / "jax_side.py"), str(FOLDER / "torch_side.py")
HEAD = "| figure | net | found | goal | reached | |\n| --- | --- | --- | --- | --- | --- |"


class Net(NamedTuple):
    """A recipe, its batch, how many pictures are drawn, how many steps make a turn, and the goal beside PyTorch."""

    recipe: str
    batch_size: int
    pictures: int
    turns: int
    goal: float


NETS = [
    Net("butterflies", 16, 16, 2, 1.2),
    Net("cifar10", 8, 8, 2, 1.2),
    Net("mnist", 128, 64, 2, 1.3),
]


class Goal(NamedTuple):
    """A bound that a figure is to stay within."""

    sign: str
    bound: float

    def reached(self, value: float) -> bool:
        """Whether a figure is within it."""
        return value >= self.bound if self.sign == ">=" else value <= self.bound


class Row(NamedTuple):
    """A line of the table; `found` is a number or a `Ratio`, `unit` is s, % or nothing."""

    figure: str
    net: str
    found: SupportsFloat
    goal: Goal | None = None
    how: str = ""
    unit: str = ""

    def __str__(self) -> str:
        value = float(self.found)
        found = (
            f"{value:.3g}{self.unit}" if isinstance(self.found, int | float) else str(self.found)
        )
        goal = "" if self.goal is None else f"{self.goal.sign} {self.goal.loss_kind:g}{self.unit}"
        reached = "" if self.goal is None else "yes" if self.goal.reached(value) else "no"
        return f"| {self.figure} | {self.net} | {found} | {goal} | {reached} | {self.how} |"


def write(preface: str, rows: Iterable[Row], page: Path | None) -> None:
    """Prints the table line by line, and writes it as it grows."""
    lines = [preface, "", HEAD]
    print("\n".join(lines), flush=True)
    for row in rows:
        lines.append(str(row))
        print(row, flush=True)
        if page is not None:
            page.write_text("\n".join(lines) + "\n")


def machine() -> str:
    """The processor and how many cores this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{models[0] if models else platform.processor() or platform.machine()}, {cores} cores"
