"""Compare training and sampling on a GPU in bfloat16 with diffusers on PyTorch.

    python benchmarks/gpu.py [--recipe cifar10] [--batch-sizes 128 1024] [--pairs 5]
        [--torch-python PYTHON] [--torch-mode max-autotune] [--peak-tflops 989] [--out FILE]

A speed relative to PyTorch is PyTorch's seconds divided by ours. As in bench.py, two processes take
turns, with the same network and weights. PyTorch runs compiled (max-autotune with CUDA graphs),
channels last, under autocast to bfloat16, with its batch in pinned host memory. Our batch is in
host memory, too. MFU is the fraction of the device's peak that is used; a training step counts as
three forward passes. The benchmark also measures the cost of --deterministic and the time from the
start to the end of the first step. Without a GPU it prints one line and ends.

To try the code without a GPU, run it with
--platform cpu --recipe digits --batch-sizes 8 --pairs 1 --torch-mode default --peak-tflops 1
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

from cold_start import first_steps
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
PEAKS = {"H100 PCIe": 756, "H100": 989, "H200": 989, "A100": 312}
"""TFLOP/s of dense bfloat16, as the maker states them, by a part of the device's name."""


def peak_of(kind: str, given: float | None) -> float:
    """The given peak, or that of a kind of device, in TFLOP/s.

    Raise SystemExit if neither is known.
    """
    known = next((peak for name, peak in PEAKS.items() if name in kind), None)
    if given is None and known is None:
        raise SystemExit(f"error: The peak of {kind} is unknown: give it with --peak-tflops.")
    return given or known


def speed(options: argparse.Namespace, batch_size: int, peak: float) -> Iterator[Row]:
    """Measure a training step and the samplers at one batch size, each with its MFU."""
    recipe = options.recipe
    device = "cuda" if options.platform == "gpu" else "cpu"
    with (
        tempfile.TemporaryDirectory() as folder,
        Side(sys.executable, OURS, NO_PREALLOCATION) as ours,
        Side(options.torch_python, TORCH) as theirs,
    ):
        ours.ask("load", recipe, batch_size, folder, dtype=DTYPE)
        flops = ours.ask("flops")
        theirs.ask("load", folder, batch_size, device, DTYPE)
        theirs.ask("use", True, True, options.torch_mode)
        # Each kind of work: the function and its arguments, and the forward passes it counts as.
        work = {
            "training step": ("train", (STEPS_PER_TURN,), 3 * STEPS_PER_TURN),
            f"{DDIM_STEPS} DDIM steps": ("sample", (DDIM_STEPS, batch_size), DDIM_STEPS),
        }
        if batch_size == min(options.batch_sizes):
            work[f"{DDPM_STEPS} DDPM steps"] = (
                "sample",
                (DDPM_STEPS, batch_size, "ddpm"),
                DDPM_STEPS,
            )
        for name, (function, arguments, passes) in work.items():
            result = ratio(
                partial(theirs.ask, function, *arguments),
                partial(ours.ask, function, *arguments),
                options.pairs,
            )
            num_images = batch_size * (STEPS_PER_TURN if function == "train" else 1)
            description = f"{name} of {batch_size} images"
            details = describe_images_per_second(num_images, result)
            measurement = f"speed relative to PyTorch: {description}"
            yield Row(measurement, recipe, result, SPEED_GOAL, details)
            mfu = 100 * passes * flops * batch_size / result.seconds[1] / (peak * 1e12)
            goal = MFU_GOAL if function == "train" else None
            details = f"{flops / 1e9:.2f} GFLOP per forward pass, peak {peak:g} TFLOP/s"
            yield Row(f"MFU: {description}", recipe, mfu, goal, details, "%")


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
    deterministic_step, usual_step = (seconds / STEPS_PER_TURN for seconds in result.seconds)
    measurement = (
        f"time of a deterministic training step of {batch_size} images, relative to the usual one"
    )
    details = f"{deterministic_step:.4f} s against {usual_step:.4f} s"
    yield Row(measurement, options.recipe, result, DETERMINISM_GOAL, details)


def describe_images_per_second(num_images: int, result: Ratio) -> str:
    """The images per second of both sides."""
    theirs, ours = (num_images / seconds for seconds in result.seconds)
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
    with Side(sys.executable, OURS, NO_PREALLOCATION) as ours:
        platform, kind = ours.ask("device")
        version = ours.ask("versions")["jax"]
    if platform != options.platform:
        print(f"No {options.platform} found, nothing measured: JAX runs on {platform} ({kind}).")
        return
    peak = peak_of(kind, options.peak_tflops)
    with Side(options.torch_python, TORCH) as theirs:
        versions = theirs.ask("versions")
    torch = ", ".join(f"{name} {value}" for name, value in versions.items())
    preface = f"# Speed on a GPU\nOn {kind}, {describe_machine()}; jax {version}; {torch}."
    speeds = chain.from_iterable(speed(options, size, peak) for size in options.batch_sizes)
    write_table(preface, chain(speeds, determinism(options), starts(options)), options.out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="cifar10")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--pairs", type=int, default=5, help="interleaved pairs per ratio")
    parser.add_argument("--platform", choices=["gpu", "cpu"], default="gpu")
    parser.add_argument(
        "--torch-python",
        default=sys.executable,
        help="Python of an environment with PyTorch and diffusers",
    )
    parser.add_argument("--torch-mode", default="max-autotune", help="mode of torch.compile")
    parser.add_argument(
        "--peak-tflops", type=float, help="peak of the device for dense bfloat16, in TFLOP/s"
    )
    parser.add_argument("--out", type=Path, help="page to write")
    main(parser.parse_args())
