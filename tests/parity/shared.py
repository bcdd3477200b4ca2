"""Settings, progress lines and the last line of the parity scripts.

Import this module before torch, whose OpenMP reads its settings when it is loaded.
"""

import argparse
import os
import time
from pathlib import Path
from typing import NamedTuple

# OpenMP's threads otherwise wait for each other in a loop. On cores that other programs use, that
# took five times the CPU time.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# The directory of the tests, which git ignores. JAX locks it only if its size has a limit.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[2] / ".jax_cache"))
os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(4 * 2**30))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

START = time.monotonic()


class Figure(NamedTuple):
    """A measured value with the largest value that passes."""

    name: str
    value: float
    bound: float

    @property
    def over(self):
        """Whether the value is over its bound, or NaN."""
        return not self.value <= self.bound


def make_parser(doc):
    """A parser of the command line whose help is the docstring of the script."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def print_progress(text):
    """Print a line with the time since the start and the CPU time of this process."""
    wall = time.monotonic() - START
    print(f"    {wall:6.0f} s, CPU {time.process_time():6.0f} s  {text}", flush=True)


def conclude(what, figures, wrong=0):
    """Print what was compared and the figure nearest to its bound. Return the exit status.

    `wrong` counts what failed without being a figure.
    """
    wrong += sum(figure.over for figure in figures)
    result = f"{wrong} wrong" if wrong else "all within their bounds"
    summary = f"{what}: {len(figures)} figures, {result}"
    if figures:
        worst = max(figures, key=lambda figure: (figure.over, figure.value / figure.bound))
        summary += f"; worst: {worst.name} {worst.value:.1e}, bound {worst.bound:.1e}"
    print_progress("end")
    print(summary)
    return int(wrong > 0)
