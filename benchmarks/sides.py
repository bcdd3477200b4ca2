"""Two programs beside each other: each side is a process that does a named piece of work when asked and times it.

They take turns, so that neither's threads are in the other's way and both see the same noise of the machine.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple


class Side:
    """A process that runs a script of this folder which ends in `serve`."""

    def __init__(self, python: str, script: str, env: dict[str, str] | None = None):
        env = os.environ | (env or {})
        self._process = subprocess.Popen(
            [python, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )

    def ask(self, function: str, *args: Any, **options: Any) -> Any:
        """What the function of the other process returns; raises RuntimeError where that ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([function, args, options]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(
                f"{self._process.args[1]} ended while it did {function}; its last words are above"
            )
        return json.loads(answer)

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()  # closes the pipes


def serve(functions: dict[str, Callable]) -> None:
    """Answers the questions of a `Side` until it goes; what else is printed goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        name, args, options = json.loads(line)
        answers.write(json.dumps(functions[name](*args, **options)) + "\n")
        answers.flush()


class Ratio(NamedTuple):
    """How many times as long one piece of work takes as another: over pairs, and each one's median seconds."""

    median: float
    lowest: float
    highest: float
    seconds: tuple[float, float]

    def __float__(self) -> float:
        return self.median

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.lowest:.3f} to {self.highest:.3f})"


def ratio(above: Callable[[], float], below: Callable[[], float], pairs: int) -> Ratio:
    """Seconds of one over seconds of the other in pairs of turning order, each asked once before to warm up."""
    above(), below()
    times = []
    for i in range(pairs):
        first, second = (above, below) if i % 2 == 0 else (below, above)
        pair = first(), second()
        times.append(pair if i % 2 == 0 else pair[::-1])
    ratios = [a / b for a, b in times]
    medians = statistics.median(a for a, _ in times), statistics.median(b for _, b in times)
    return Ratio(statistics.median(ratios), min(ratios), max(ratios), medians)
