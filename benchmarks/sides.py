"""Measure two programs side by side. Each is a process that does named work on request.

They take turns, so that their threads do not compete and both see the same load of the machine.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Side:
    """A process that runs a script of this folder which ends in `serve`.

    The end of the block kills it.
    """

    def __init__(self, python: str, script: str, env: dict[str, str] | None = None):
        env = os.environ | (env or {})
        self._process = subprocess.Popen(
            [python, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )

    def ask(self, function: str, *args: Any, **options: Any) -> Any:
        """Call a function of the other process. Raise RuntimeError if the process ends."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([function, args, options]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            script = self._process.args[1]
            raise RuntimeError(f"{script} ended during {function}: see its last output above.")
        return json.loads(answer)

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        # Closes the pipes.
        self._process.communicate()


def serve(functions: dict[str, Callable]) -> None:
    """Answer the requests of a `Side` until it ends. Other output goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        name, args, options = json.loads(line)
        answers.write(json.dumps(functions[name](*args, **options)) + "\n")
        answers.flush()


class Ratio(NamedTuple):
    """The time of one kind of work, or another amount, relative to another, in pairs.

    `medians` holds the median amounts of both.
    """

    median: float
    lowest: float
    highest: float
    medians: tuple[float, float]

    def __float__(self) -> float:
        return self.median

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.lowest:.3f} to {self.highest:.3f})"


def ratio(above: Callable[[], float], below: Callable[[], float], pairs: int) -> Ratio:
    """Measure the seconds of `above` divided by those of `below`, in pairs of alternating order.

    Both are called once before, to warm up.
    """
    above()
    below()
    times = []
    for i in range(pairs):
        if i % 2 == 0:
            above_seconds = above()
            below_seconds = below()
        else:
            below_seconds = below()
            above_seconds = above()
        times.append((above_seconds, below_seconds))
    return ratio_of(*zip(*times, strict=True))


def ratio_of(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """The `Ratio` of amounts that were measured in pairs."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    medians = (statistics.median(above), statistics.median(below))
    return Ratio(statistics.median(ratios), min(ratios), max(ratios), medians)
