"""Rows about compilation: naive convolutions, recompilations, time until the first step ends."""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cold_start import first_steps
from convolutions import convolutions, naive_convolutions
from rows import FOLDER, OURS, Goal, Net, Row
from sides import Side

RUN_STEPS = 500
EVERY = 100
EMPTY_CACHE_SECONDS = 20
FILLED_CACHE_SECONDS = 8
OPTIMIZED = "*after_optimizations.txt"


def naive(net: Net) -> Iterator[Row]:
    """Count the naive convolutions in all optimized programs of a training step and a sampler."""
    with tempfile.TemporaryDirectory() as folder:
        env = {
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={folder} "
            "--xla_dump_hlo_as_text",
            # XLA does not dump a program that comes from the cache.
            "JAX_ENABLE_COMPILATION_CACHE": "false",
        }
        with Side(sys.executable, OURS, env) as ours:
            ours.ask("load", net.recipe, net.batch_size)
            ours.ask("train", 1)
            ours.ask("sample", 2, net.num_images)
        texts = [file.read_text() for file in Path(folder).glob(OPTIMIZED)]
    programs = [text for text in texts if convolutions(text)]
    num_naive = sum(len(naive_convolutions(text)) for text in programs)
    num_convolutions = sum(len(convolutions(text)) for text in programs)
    if not num_convolutions:
        raise RuntimeError(
            "XLA dumped no program with a convolution: check that this JAX knows --xla_dump_to."
        )
    measurement = "naive convolutions in the training step and the sampler"
    details = f"of {num_convolutions} in {len(programs)} programs with convolutions"
    yield Row(measurement, net.recipe, num_naive, Goal("<=", 0), details)


def recompilations(
    recipe: str = "digits", steps: int = RUN_STEPS, every: int = EVERY
) -> Iterator[Row]:
    """Count what a run of train.py compiles after it has done each kind of work once."""
    with Side(sys.executable, str(FOLDER / "recompilations.py")) as run:
        before, after = run.ask("count", recipe, steps, every)
    measurement = f"recompilations in {steps} steps, with sampling and evaluation every {every}"
    details = f"after {before} programs in the first {every} steps"
    yield Row(measurement, recipe, after, Goal("<=", 0), details)


def cold_start(net: Net) -> Iterator[Row]:
    """Measure the time from starting train.py to the end of its first step."""
    goals = {"empty": EMPTY_CACHE_SECONDS, "filled": FILLED_CACHE_SECONDS}
    runs = first_steps(net.recipe, net.batch_size)
    for (cache, goal), marks in zip(goals.items(), runs, strict=True):
        *earlier, (_, first_step) = marks.items()
        measurement = (
            f"time from start to end of first step of {net.batch_size} images, "
            f"compilation cache {cache}"
        )
        details = ", ".join(f"{mark} after {seconds:.1f} s" for mark, seconds in earlier)
        details += "; one run"
        yield Row(measurement, net.recipe, first_step, Goal("<=", goal), details, " s")
