"""Measure training and sampling on a GPU in bfloat16, beside diffusers on PyTorch.

    timeout 480 python benchmarks/gpu.py [--recipe cifar10] [--batch-sizes 128 1024] [--pairs 3]
        [--torch-python PYTHON] [--torch-mode max-autotune] [--out FILE]

The rows come in the order of their weight, each printed as soon as it is found, so that a run that
is cut off still leaves the first ones: training steps of the batch sizes, DDIM, the first step of a
process, --deterministic, and last DDPM.

A speed relative to PyTorch is PyTorch's seconds divided by ours. As in bench.py, two processes take
turns, with the same network and weights. PyTorch runs compiled (max-autotune with CUDA graphs),
channels last, under autocast to bfloat16, with its batch in pinned host memory. Our batch is in
host memory, too. Both use one GPU, the first that CUDA_VISIBLE_DEVICES names. MFU is the fraction
of its peak that is used; a training step counts as three forward passes. The estimate is that of
chips.py: the longest of the times of arithmetic and memory at the maker's rates, from the program
as it was compiled here. Without a GPU the benchmark prints one line and ends.

To try the code without a GPU, run it with
--platform cpu --recipe digits --batch-sizes 8 --pairs 1 --torch-mode default --kind h100
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from chip_kinds import Chip, chip_of
from cold_start import first_steps
from operations import PASSES_OF_A_STEP
from rows import FOLDER, TORCH, Goal, Row, describe_machine, write_table
from sides import Ratio, Side, ratio

from ddpm_jax.devices.platform import DETERMINISTIC

OURS = str(FOLDER / "gpu_side.py")
# Leaves memory of the GPU to the other side.
NO_PREALLOCATION = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
DTYPE = "bfloat16"
STEPS_PER_TURN = 10
DDIM_STEPS = 50
DDPM_STEPS = 1000
SPEED_GOAL = Goal(">=", 1.3)
MFU_GOAL = Goal(">=", 40)
DETERMINISM_GOAL = Goal("<=", 1.1)


class Sides(NamedTuple):
    """Our process and PyTorch's, both with the same network, at one batch size."""

    ours: Side
    theirs: Side
    batch_size: int
    flops: float
    """Floating-point operations of a forward pass of one image."""


@contextlib.contextmanager
def both_sides(options: argparse.Namespace, batch_size: int) -> Iterator[Sides]:
    """Start both processes and load the network."""
    device = "cuda" if options.platform == "gpu" else "cpu"
    with (
        tempfile.TemporaryDirectory() as folder,
        Side(sys.executable, OURS, NO_PREALLOCATION) as ours,
        Side(options.torch_python, TORCH) as theirs,
    ):
        ours.ask("load", options.recipe, batch_size, folder, dtype=DTYPE)
        clip_norm = ours.ask("clip_norm")
        theirs.ask("load", folder, batch_size, device, DTYPE, clip_norm)
        theirs.ask("use", True, True, options.torch_mode)
        yield Sides(ours, theirs, batch_size, ours.ask("flops"))


def training(options: argparse.Namespace, sides: Sides, chip: Chip) -> Iterator[Row]:
    """Measure a training step, and how far its estimate is off."""
    size = sides.batch_size
    result = compare(options, sides, "train", STEPS_PER_TURN)
    name = f"training step of {size} images"
    details = describe_images_per_second(size * STEPS_PER_TURN, result)
    yield Row(f"speed relative to PyTorch: {name}", options.recipe, result, SPEED_GOAL, details)
    flops = PASSES_OF_A_STEP * size * sides.flops
    seconds = result.medians[1] / STEPS_PER_TURN
    yield mfu(options, name, flops, seconds, chip, MFU_GOAL)
    launched, moved = sides.ours.ask("work")
    estimate = chip.shortest_time(flops, moved)
    details = (
        f"{1e3 * seconds:.2f} ms against {1e3 * estimate:.2f} ms; "
        f"{launched:,} kernels, {moved / 1e9:.1f} GB"
    )
    measurement = f"time relative to its estimate: {name}"
    yield Row(measurement, options.recipe, seconds / estimate, None, details)


def sampling(
    options: argparse.Namespace, sides: Sides, chip: Chip, sampler: str, steps: int
) -> Iterator[Row]:
    """Measure a sampler that draws as many images as a training step has."""
    size = sides.batch_size
    result = compare(options, sides, "sample", steps, size, sampler)
    name = f"{steps} {sampler.upper()} steps of {size} images"
    details = describe_images_per_second(size, result)
    yield Row(f"speed relative to PyTorch: {name}", options.recipe, result, SPEED_GOAL, details)
    yield mfu(options, name, steps * size * sides.flops, result.medians[1], chip)


def compare(options: argparse.Namespace, sides: Sides, function: str, *args: Any) -> Ratio:
    """PyTorch's seconds for a kind of work relative to ours."""
    theirs = partial(sides.theirs.ask, function, *args)
    return ratio(theirs, partial(sides.ours.ask, function, *args), options.pairs)


def mfu(
    options: argparse.Namespace,
    name: str,
    flops: float,
    seconds: float,
    chip: Chip,
    goal: Goal | None = None,
) -> Row:
    """The row of the fraction of the peak that some work uses."""
    percent = chip.mfu(flops, seconds)
    details = f"{flops / 1e12:.3f} TFLOP in {seconds:.4f} s, peak {chip.peak:g} TFLOP/s"
    return Row(f"MFU: {name}", options.recipe, percent, goal, details, "%")


def determinism(options: argparse.Namespace) -> Iterator[Row]:
    """Measure the time of a deterministic training step relative to the usual one."""
    batch_size = min(options.batch_sizes)
    flags = {"XLA_FLAGS": DETERMINISTIC}
    with (
        tempfile.TemporaryDirectory() as folder,
        Side(sys.executable, OURS, NO_PREALLOCATION) as usual,
        Side(sys.executable, OURS, NO_PREALLOCATION | flags) as deterministic,
    ):
        for side in (usual, deterministic):
            side.ask("load", options.recipe, batch_size, folder, dtype=DTYPE)
        result = ratio(
            partial(deterministic.ask, "train", STEPS_PER_TURN),
            partial(usual.ask, "train", STEPS_PER_TURN),
            options.pairs,
        )
    deterministic_step, usual_step = (seconds / STEPS_PER_TURN for seconds in result.medians)
    measurement = (
        f"time of a deterministic training step of {batch_size} images, relative to the usual one"
    )
    details = f"{deterministic_step:.4f} s against {usual_step:.4f} s"
    yield Row(measurement, options.recipe, result, DETERMINISM_GOAL, details)


def describe_images_per_second(num_images: int, result: Ratio) -> str:
    """The images per second of both sides."""
    theirs, ours = (num_images / seconds for seconds in result.medians)
    return f"images/s: PyTorch {theirs:,.1f}, ours {ours:,.1f}"


def starts(options: argparse.Namespace) -> Iterator[Row]:
    """Measure the seconds from the start of a process to the end of its first step.

    First with empty caches of compiled programs, then with filled ones.
    """
    batch_size = min(options.batch_sizes)
    settings = ["--training.dtype", DTYPE, "--platform", options.platform]
    ours = first_steps(options.recipe, batch_size, settings)
    runs = zip(ours, torch_starts(options, batch_size), strict=True)
    for cache, (marks, torch_seconds) in zip(("empty", "filled"), runs, strict=True):
        *_, seconds = marks.values()
        measurement = (
            f"time from start to end of first step of {batch_size} images, "
            f"compilation cache {cache}"
        )
        details = f"PyTorch {torch_seconds:.1f} s"
        yield Row(measurement, options.recipe, seconds, None, details, " s")


def torch_starts(options: argparse.Namespace, batch_size: int) -> Iterator[float]:
    """Yield PyTorch's seconds to a first step: with an empty compiler cache, then a filled one."""
    device = "cuda" if options.platform == "gpu" else "cpu"
    with tempfile.TemporaryDirectory() as weights, tempfile.TemporaryDirectory() as cache:
        with Side(sys.executable, OURS, NO_PREALLOCATION) as ours:
            ours.ask("load", options.recipe, batch_size, weights)
        for _ in range(2):
            began = time.perf_counter()
            with Side(options.torch_python, TORCH, {"TORCHINDUCTOR_CACHE_DIR": cache}) as theirs:
                theirs.ask("load", weights, batch_size, device, DTYPE)
                theirs.ask("use", True, True, options.torch_mode)
                theirs.ask("train", 0)
                yield time.perf_counter() - began


def main(options: argparse.Namespace) -> None:
    """Print the table and write it to --out. Without such a device, print one line."""
    # PyTorch uses one GPU, JAX all that it sees.
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    with Side(sys.executable, OURS, NO_PREALLOCATION) as ours:
        platform, kind, software = ours.ask("device")
        version = ours.ask("versions")["jax"]
    if platform != options.platform:
        print(f"No {options.platform} found, nothing measured: JAX runs on {platform} ({kind}).")
        return
    chip = chip_of(options.kind or kind)
    with Side(options.torch_python, TORCH) as theirs:
        versions = theirs.ask("versions")
    torch = ", ".join(f"{name} {value}" for name, value in versions.items())
    preface = (
        f"# Speed on a GPU\nOn {kind}, {describe_machine()}; jax {version}, {software}; {torch}, "
        f"torch.compile mode {options.torch_mode}; {DTYPE}, {options.pairs} pairs of "
        f"{STEPS_PER_TURN} training steps: `gpu.py {' '.join(sys.argv[1:])}`."
    )
    write_table(preface, rows(options, chip), options.out)


def rows(options: argparse.Namespace, chip: Chip) -> Iterator[Row]:
    """The rows in the order of their weight."""
    first, *others = options.batch_sizes
    with both_sides(options, first) as sides:
        yield from training(options, sides, chip)
        for size in others:
            with both_sides(options, size) as larger:
                yield from training(options, larger, chip)
        yield from sampling(options, sides, chip, "ddim", DDIM_STEPS)
        yield from starts(options)
        yield from determinism(options)
        yield from sampling(options, sides, chip, "ddpm", DDPM_STEPS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="cifar10")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--pairs", type=int, default=3, help="interleaved pairs per ratio")
    parser.add_argument("--platform", choices=["gpu", "cpu"], default="gpu")
    parser.add_argument(
        "--torch-python",
        default=sys.executable,
        help="Python of an environment with PyTorch and diffusers",
    )
    parser.add_argument("--torch-mode", default="max-autotune", help="mode of torch.compile")
    parser.add_argument("--kind", help="take the rates of this chip of chip_kinds.py, such as h100")
    parser.add_argument("--out", type=Path, help="page to write")
    main(parser.parse_args())
