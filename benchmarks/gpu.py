"""Training and sampling on a GPU in bfloat16 beside diffusers on PyTorch; without a GPU it says so and ends.

    python benchmarks/gpu.py [--recipe cifar10] [--batch-sizes 128 1024] [--pairs 5] [--torch-python PYTHON]
        [--torch-mode max-autotune] [--peak-tflops 989] [--out FILE]

A speed is PyTorch's seconds over ours, as in bench.py: processes that take turns, the same net from the same weights.
PyTorch runs compiled (max-autotune with its CUDA graphs), channels last, under autocast to bfloat16, with a batch
that waits in pinned memory; ours has its batch on the host too. MFU, the share of the device's peak in use, counts
three forward passes for a training step. --platform cpu tries the same code out where there is no GPU, as in
--platform cpu --recipe digits --batch-sizes 8 --pairs 1 --torch-mode default --peak-tflops 1.
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
from rows import FOLDER, TORCH, Goal, Row, machine, write
from sides import Ratio, Side, ratio

from ddpm_jax.devices.platform import DETERMINISTIC

OURS = str(FOLDER / "gpu_side.py")
SHARE = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # leaves the other side some memory
DTYPE = "bfloat16"
TURNS = 10
DDIM_STEPS, DDPM_STEPS = 50, 1000
SPEED, MFU, PRICE = Goal(">=", 1.3), Goal(">=", 40), Goal("<=", 1.1)
PEAKS = {"H100 PCIe": 756, "H100": 989, "H200": 989, "A100": 312}
"""TFLOP/s of dense bfloat16 by what a device's kind says, as the maker states them."""


def peak_of(kind: str, given: float | None) -> float:
    """The peak of a kind of device in TFLOP/s, or the one that was given; SystemExit where neither is known."""
    known = next((peak for name, peak in PEAKS.items() if name in kind), None)
    if given is None and known is None:
        raise SystemExit(f"the peak of {kind} is not known here: give it by --peak-tflops")
    return given or known


def speed(wanted: argparse.Namespace, batch_size: int, peak: float) -> Iterator[Row]:
    """A training step and samplers for one batch size, and the share of the peak that each reaches."""
    recipe, device = wanted.recipe, "cuda" if wanted.platform == "gpu" else "cpu"
    with (
        tempfile.TemporaryDirectory() as folder,
        Side(sys.executable, OURS, SHARE) as ours,
        Side(wanted.torch_python, TORCH) as theirs,
    ):
        ours.ask("load", recipe, batch_size, folder, dtype=DTYPE)
        flops = ours.ask("flops")
        theirs.ask("load", folder, batch_size, device, DTYPE)
        theirs.ask("use", True, True, wanted.torch_mode)
        work = {
            "training step": ((TURNS,), 3 * TURNS),
            f"DDIM-{DDIM_STEPS}": ((DDIM_STEPS, batch_size), DDIM_STEPS),
        }
        if batch_size == min(wanted.batch_sizes):
            work[f"DDPM-{DDPM_STEPS}"] = ((DDPM_STEPS, batch_size, "ddpm"), DDPM_STEPS)
        for what, (args, passes) in work.items():
            function = "train" if what == "training step" else "sample"
            found = ratio(
                partial(theirs.ask, function, *args),
                partial(ours.ask, function, *args),
                wanted.pairs,
            )
            images = batch_size * (TURNS if function == "train" else 1)
            what = f"{what} of {batch_size}"
            yield Row(
                f"speed over PyTorch's: {what}", recipe, found, SPEED, per_second(images, found)
            )
            used = 100 * passes * flops * batch_size / found.seconds[1] / (peak * 1e12)
            how = f"{flops / 1e9:.2f} GFLOP a forward pass, of {peak:g} TFLOP/s"
            yield Row(f"MFU: {what}", recipe, used, MFU if function == "train" else None, how, "%")


def determinism(wanted: argparse.Namespace) -> Iterator[Row]:
    """What it costs that a training step gives the same bits each time (--deterministic of train.py)."""
    batch_size = min(wanted.batch_sizes)
    same = {"XLA_FLAGS": DETERMINISTIC}
    with (
        tempfile.TemporaryDirectory() as folder,
        Side(sys.executable, OURS, SHARE) as usual,
        Side(sys.executable, OURS, SHARE | same) as deterministic,
    ):
        for side in (usual, deterministic):
            side.ask("load", wanted.recipe, batch_size, folder, dtype=DTYPE)
        found = ratio(
            partial(deterministic.ask, "train", TURNS),
            partial(usual.ask, "train", TURNS),
            wanted.pairs,
        )
    how = f"{found.seconds[0] / TURNS:.4f} s over {found.seconds[1] / TURNS:.4f} s a step"
    yield Row(
        f"training step of {batch_size}, deterministic over not", wanted.recipe, found, PRICE, how
    )


def per_second(images: int, found: Ratio) -> str:
    """Both sides' pictures per second."""
    theirs, ours = (images / seconds for seconds in found.seconds)
    return f"images/s: PyTorch {theirs:,.1f}, ours {ours:,.1f}"


def starts(wanted: argparse.Namespace) -> Iterator[Row]:
    """Seconds from the start of a process to its first step: with empty caches of compiled programs, then filled."""
    batch_size = min(wanted.batch_sizes)
    dtype = ["--training.dtype", DTYPE, "--platform", wanted.platform]
    pairs = zip(
        first_steps(wanted.recipe, batch_size, dtype), torch_starts(wanted, batch_size), strict=True
    )
    for cache, (marks, theirs) in zip(("empty", "filled"), pairs, strict=True):
        *_, seconds = marks.values()
        what = f"first training step of {batch_size}, compilation cache {cache}"
        yield Row(what, wanted.recipe, seconds, None, f"PyTorch {theirs:.1f} s", " s")


def torch_starts(wanted: argparse.Namespace, batch_size: int) -> Iterator[float]:
    """PyTorch's seconds to a first step, without and with what its compiler kept."""
    device = "cuda" if wanted.platform == "gpu" else "cpu"
    with tempfile.TemporaryDirectory() as weights, tempfile.TemporaryDirectory() as cache:
        with Side(sys.executable, OURS, SHARE) as ours:
            ours.ask("load", wanted.recipe, batch_size, weights)
        for _ in range(2):
            began = time.perf_counter()
            with Side(wanted.torch_python, TORCH, {"TORCHINDUCTOR_CACHE_DIR": cache}) as theirs:
                theirs.ask("load", weights, batch_size, device, DTYPE)
                theirs.ask("use", True, True, wanted.torch_mode)
                theirs.ask("train", 0)
                yield time.perf_counter() - began


def main(wanted: argparse.Namespace) -> None:
    """Prints the table, and writes it; one line where there is no such device."""
    with Side(sys.executable, OURS, SHARE) as ours:
        platform, kind = ours.ask("device")
        version = ours.ask("versions")["jax"]
    if platform != wanted.platform:
        print(
            f"no {wanted.platform} is here: JAX runs on {platform} ({kind}), so nothing was measured"
        )
        return
    peak = peak_of(kind, wanted.peak_tflops)
    with Side(wanted.torch_python, TORCH) as theirs:
        torch = ", ".join(f"{name} {value}" for name, value in theirs.ask("versions").items())
    preface = f"# How fast on a GPU\nOn {kind}, {machine()}; jax {version}; {torch}."
    speeds = chain.from_iterable(speed(wanted, size, peak) for size in wanted.batch_sizes)
    write(preface, chain(speeds, determinism(wanted), starts(wanted)), wanted.out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="cifar10")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--platform", choices=["gpu", "cpu"], default="gpu")
    parser.add_argument(
        "--torch-python", default=sys.executable, help="the Python of an environment with diffusers"
    )
    parser.add_argument("--torch-mode", default="max-autotune", help="that of torch.compile")
    parser.add_argument("--peak-tflops", type=float, help="the device's, for dense bfloat16")
    parser.add_argument("--out", type=Path)
    main(parser.parse_args())
