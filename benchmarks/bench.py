"""How fast, and at what cost: training, forward passes and sampling beside diffusers on PyTorch, and our own costs.

    python benchmarks/bench.py [--rows training loop ...] [--nets butterflies cifar10 mnist] [--pairs 7]
        [--torch-python PYTHON] [--older-python PYTHON] [--out FILE]

A speed is PyTorch's seconds over ours: above 1 ours is faster. Two sides are processes that take turns in pairs, with
the same net from the same weights in float32; the median of the pairs stands with the lowest and the highest.
PyTorch runs in the fastest of four ways, eager or compiled, contiguous or channels last, found for each row; its
environment (extra `parity`) may be another one than that of JAX. With --older-python, ours also runs in an older
Python's environment. Rows of one net alone are of the first of --nets, the loop of the last, where it would weigh most.
`gpu.py` is this for a GPU.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import beside_torch
import costs
import programs
from rows import NETS, OURS, TORCH, Row, machine, write
from sides import Side

OURS_ALONE = (
    "loop",
    "accumulation",
    "pmap",
    "devices",
    "input",
    "saving",
    "cold-start",
    "convolutions",
    "recompilations",
)
ROWS = (*beside_torch.ROWS, "memory", *OURS_ALONE)
TITLE = """# How fast
What `make bench` found: ratios of one run of interleaved pairs, the median with the lowest and the highest.
`python benchmarks/bench.py --help` says how; `python benchmarks/gpu.py` is the same for a GPU.
"""


def rows(wanted: argparse.Namespace) -> Iterator[Row]:
    """The rows that are wanted, as they are found."""
    nets, pairs = [net for net in NETS if net.recipe in wanted.nets], wanted.pairs
    if set(beside_torch.ROWS) & set(wanted.rows):
        for net in nets:
            yield from beside_torch.speed(
                net, wanted.rows, pairs, wanted.torch_python, wanted.older_python
            )
    for net in nets:
        if "convolutions" in wanted.rows:
            yield from programs.naive(net)
        if "devices" in wanted.rows:
            yield from costs.devices(net, pairs)
    of_one_net = {
        "memory": lambda: beside_torch.memory(nets[0], wanted.torch_python),
        "loop": lambda: costs.loop(nets[-1], pairs),
        "accumulation": lambda: costs.accumulation(nets[0], pairs),
        "pmap": lambda: costs.routes(nets[0], pairs),
        "input": lambda: costs.input_pipeline(nets[0], pairs),
        "saving": lambda: costs.saving(nets[0], pairs),
        "cold-start": lambda: programs.cold_start(nets[0]),
        "recompilations": programs.recompilations,
    }
    for name in (name for name in of_one_net if name in wanted.rows):
        yield from of_one_net[name]()


def versions(wanted: argparse.Namespace) -> str:
    """What the figures are of: the machine, the libraries."""
    beside = {*beside_torch.ROWS, "memory"} & set(wanted.rows)
    sides = [
        (sys.executable, OURS),
        (wanted.torch_python if beside else None, TORCH),
        (wanted.older_python, OURS),
    ]
    found = [machine()]
    for python, script in ((python, script) for python, script in sides if python):
        with Side(python, script) as side:
            found.append(
                ", ".join(f"{name} {value}" for name, value in side.ask("versions").items())
            )
    return "; ".join(found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [net.recipe for net in NETS]
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--nets", nargs="+", choices=names, default=names)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument(
        "--torch-python", default=sys.executable, help="the Python of an environment with diffusers"
    )
    parser.add_argument(
        "--older-python", help="one with an older JAX, for training steps and forward passes"
    )
    parser.add_argument("--out", type=Path, help="the page to write, of a run of all rows and nets")
    wanted = parser.parse_args()
    whole = set(wanted.rows) == set(ROWS) and wanted.nets == names
    if wanted.out is not None and not whole:
        parser.error("--out is for a run of all rows and nets")
    write(f"{TITLE}\nOn {versions(wanted)}.", rows(wanted), wanted.out)
