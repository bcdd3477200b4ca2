"""The rows that stand beside diffusers on PyTorch: training steps, forward passes, sampling, and peak memory."""

import contextlib
import itertools
import sys
import tempfile
from collections.abc import Iterator
from functools import partial

from rows import OURS, TORCH, Goal, Net, Row
from sides import Side, ratio

ROWS = ("training", "forward", "sampling")
OLDER = ("training", "forward")
DDIM_STEPS = 50
MEMORY_STEPS = 3


def speed(
    net: Net, wanted: list[str], pairs: int, torch_python: str, older_python: str | None
) -> Iterator[Row]:
    """PyTorch's seconds over ours for each kind of work, ours also in an older Python's JAX if there is one."""
    work = {
        "training": (f"training step of {net.batch_size}", net.turns, "train", net.turns),
        "forward": (f"forward pass of {net.batch_size}", 5, "forward", 5),
        "sampling": (
            f"DDIM, {DDIM_STEPS} steps of {net.pictures}",
            1,
            "sample",
            DDIM_STEPS,
            net.pictures,
        ),
    }
    for name in (name for name in ROWS if name in wanted):
        what, count, function, *args = work[name]
        pythons = [sys.executable, older_python if name in OLDER else None]
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            theirs = stack.enter_context(Side(torch_python, TORCH))
            ours = [stack.enter_context(Side(python, OURS)) for python in pythons if python]
            for side in ours:
                side.ask("load", net.recipe, net.batch_size, folder, sampling=name != "training")
            theirs.ask("load", folder, net.batch_size)
            way = fastest_way(theirs, function, args if function != "sample" else [5, net.pictures])
            for side in ours:
                found = ratio(
                    partial(theirs.ask, function, *args), partial(side.ask, function, *args), pairs
                )
                above, below = (seconds / count for seconds in found.seconds)
                how = f"PyTorch {above:.3f} s ({way}), JAX {side.ask('versions')['jax']} {below:.3f} s"
                yield Row(
                    f"speed over PyTorch's: {what}", net.recipe, found, Goal(">=", net.goal), how
                )


def fastest_way(theirs: Side, function: str, args: list) -> str:
    """Sets PyTorch to the fastest way of doing that work, and says which it is."""
    seconds = {}
    for way in itertools.product((False, True), repeat=2):
        theirs.ask("use", *way)
        theirs.ask(function, *args)  # compiles
        seconds[way] = min(theirs.ask(function, *args) for _ in range(2))
    compiled, channels_last = best = min(seconds, key=lambda way: seconds[way])
    theirs.ask("use", *best)
    return f"{'compiled' if compiled else 'eager'}, {'channels last' if channels_last else 'contiguous'}"


def memory(net: Net, torch_python: str) -> Iterator[Row]:
    """Our peak over that of PyTorch's leaner way, each in a process of its own that takes some training steps.

    The peak is the kernel's, of all the process held at once; a process also inherits that of the one that starts it,
    so this one stays small.
    """
    with tempfile.TemporaryDirectory() as weights, tempfile.TemporaryDirectory() as cache:
        with Side(sys.executable, OURS) as ours:
            ours.ask("load", net.recipe, net.batch_size, weights)
        peaks = {}
        for compiled in (False, True):
            with Side(torch_python, TORCH) as theirs:
                theirs.ask("load", weights, net.batch_size)
                theirs.ask("use", compiled, False)
                theirs.ask("train", MEMORY_STEPS)
                peaks["compiled" if compiled else "eager"] = theirs.ask("peak")
        way = min(peaks, key=lambda way: peaks[way])
        for when in ("compiled afresh", "from the compilation cache"):
            with Side(sys.executable, OURS, {"JAX_COMPILATION_CACHE_DIR": cache}) as ours:
                ours.ask("load", net.recipe, net.batch_size)
                ours.ask("train", MEMORY_STEPS)
                found = ours.ask("peak")
            how = f"ours {found / 2**20:.0f} MiB, PyTorch ({way}) {peaks[way] / 2**20:.0f} MiB"
            what = f"peak memory of training over PyTorch's, {when}"
            yield Row(what, net.recipe, found / peaks[way], Goal("<=", 1.0), how)
