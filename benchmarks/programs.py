"""The rows about what is compiled: naive convolutions in it, what is compiled again, how long a first step takes."""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cold_start import first_steps
from convolutions import convolutions, naive_convolutions
from rows import FOLDER, OURS, Goal, Net, Row
from sides import Side

RUN_STEPS, EVERY = 500, 100
COLD_SECONDS, WARM_SECONDS = 15, 6
OPTIMIZED = "*after_optimizations.txt"


def naive(net: Net) -> Iterator[Row]:
    """Of all programs that a training step and a sampling walk compile, as XLA writes them down when it is done."""
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--xla_dump_to={folder} --xla_dump_hlo_as_text"
        fresh = {
            "XLA_FLAGS": flags,
            "JAX_ENABLE_COMPILATION_CACHE": "false",
        }  # what a cache has is not written down
        with Side(sys.executable, OURS, fresh) as ours:
            ours.ask("load", net.recipe, net.batch_size)
            ours.ask("train", 1)
            ours.ask("sample", 2, net.pictures)
        programs = [
            text for file in Path(folder).glob(OPTIMIZED) if convolutions(text := file.read_text())
        ]
    found = [line for text in programs for line in naive_convolutions(text)]
    count = sum(len(convolutions(text)) for text in programs)
    if not count:
        raise RuntimeError(
            "XLA wrote no program with a convolution down: does this JAX know --xla_dump_to?"
        )
    how = f"of {count} in {len(programs)} programs that have any"
    yield Row(
        "naive convolutions in the training step and the sampler",
        net.recipe,
        len(found),
        Goal("<=", 0),
        how,
    )


def recompilations(
    recipe: str = "digits", steps: int = RUN_STEPS, every: int = EVERY
) -> Iterator[Row]:
    """A run of train.py with grids, checkpoints and evaluations: what it compiles once each was done."""
    with Side(sys.executable, str(FOLDER / "recompilations.py")) as run:
        before, after = run.ask("count", recipe, steps, every)
    what = f"recompilations in {steps} steps, with sampling and evaluation every {every}"
    yield Row(
        what, recipe, after, Goal("<=", 0), f"after {before} programs in the first {every} steps"
    )


def cold_start(net: Net) -> Iterator[Row]:
    """From the start of train.py until its first step is done, with an empty compilation cache and from it."""
    goals = {"empty": COLD_SECONDS, "filled": WARM_SECONDS}
    for (cache, goal), marks in zip(
        goals.items(), first_steps(net.recipe, net.batch_size), strict=True
    ):
        *before, (_, seconds) = marks.items()
        how = ", ".join(f"{what} after {part:.1f} s" for what, part in before)
        what = f"cold first step of {net.batch_size}, compilation cache {cache}"
        yield Row(what, net.recipe, seconds, Goal("<=", goal), how, " s")
