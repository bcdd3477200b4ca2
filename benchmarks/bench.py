"""Training, forward passes and sampling beside diffusers on PyTorch, on this machine: make bench

    python benchmarks/bench.py [--nets butterflies cifar10 mnist] [--pairs 7] [--torch-python PYTHON] [--out FILE]

A figure is PyTorch's seconds over ours: above 1 ours is faster. The two sides are processes that take turns in pairs,
with the same net from the same weights in float32; the median of the pairs stands with the lowest and the highest.
PyTorch runs in the fastest of four ways, eager or compiled, contiguous or channels last, found for each row; its
environment (extra `parity`) may be another one than that of JAX.
"""

import argparse
import itertools
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from sides import Side, ratio

FOLDER = Path(__file__).parent
DDIM_STEPS = 50
LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # as train.py and sample.py set them


class Net(NamedTuple):
    """A recipe, its batch, how many pictures are drawn, and how many steps make one turn."""

    recipe: str
    batch_size: int
    pictures: int
    turns: int


NETS = [Net("butterflies", 16, 16, 2), Net("cifar10", 8, 8, 2), Net("mnist", 128, 64, 2)]
HEAD = ["| net | what | PyTorch / ours | seconds, PyTorch and ours | PyTorch was |", "| --- | --- | --- | --- | --- |"]


def rows(net: Net, pairs: int, torch_python: str) -> Iterator[str]:
    """A line of the table for each kind of work."""
    with (
        Side(sys.executable, str(FOLDER / "jax_side.py"), LARGE_PAGES) as ours,
        Side(torch_python, str(FOLDER / "torch_side.py")) as theirs,
        tempfile.TemporaryDirectory() as folder,
    ):
        ours.ask("load", net.recipe, net.batch_size, folder)
        theirs.ask("load", folder, net.batch_size)
        work = {
            f"training step of {net.batch_size}": (net.turns, "train", net.turns),
            f"forward pass of {net.batch_size}": (5, "forward", 5),
            f"DDIM, {DDIM_STEPS} steps of {net.pictures}": (1, "sample", DDIM_STEPS, net.pictures),
        }
        for what, (count, function, *args) in work.items():
            way = fastest_way(theirs, function, args if function != "sample" else [5, net.pictures])
            found = ratio(partial(theirs.ask, function, *args), partial(ours.ask, function, *args), pairs)
            seconds = " and ".join(f"{s / count:.3f}" for s in found.seconds)
            yield f"| {net.recipe} | {what} | {found} | {seconds} | {way} |"
        yield f"| | versions | {ours.ask('versions')} | {theirs.ask('versions')} | |"


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


def main(nets: list[str], pairs: int, torch_python: str, out: Path | None) -> None:
    """Prints the table line by line, and writes it to `out`."""
    lines = list(HEAD)
    print("\n".join(lines))
    for net in NETS:
        for line in rows(net, pairs, torch_python) if net.recipe in nets else ():
            print(line, flush=True)
            lines.append(line)
    if out is not None:
        out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [net.recipe for net in NETS]
    parser.add_argument("--nets", nargs="+", choices=names, default=names)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--torch-python", default=sys.executable, help="the Python of an environment with diffusers")
    parser.add_argument("--out", type=Path)
    main(**vars(parser.parse_args()))
