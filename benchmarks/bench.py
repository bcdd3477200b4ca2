"""Compare our speed and memory with diffusers on PyTorch, and measure our overheads.

    python benchmarks/bench.py [--rows training loop ...] [--nets butterflies cifar10 mnist]
        [--pairs 5] [--torch-python PYTHON] [--dew-python PYTHON] [--older-python PYTHON]
        [--out FILE]

A speed relative to PyTorch is PyTorch's seconds divided by ours: above 1, ours is faster. Each side
is a separate process. The two take turns in pairs, with the same network and weights, in float32.
The table shows the median ratio of the pairs, with the lowest and the highest.

PyTorch runs eager or compiled, contiguous or channels last. For each row of speed, the fastest of
these four modes is found first. PyTorch (extra `parity`) may be in another environment than JAX.
dew is another JAX library (package `dewml`, Python 3.12 or newer); it pins other versions, and
--dew-python names an environment with it and jaxtyping. Its network differs from ours, so the times
of both are divided by the operations of a forward pass.
With --older-python, training steps and forward passes also run in an environment with an older JAX.

Most rows about our overheads measure only the first of --nets. The sampling loop is measured with
the last one, where its overhead weighs most, and recompilations with the recipe digits. For speed
on a GPU see `gpu.py`.
"""

import argparse
import datetime
import sys
from collections.abc import Iterator
from pathlib import Path

import beside_dew
import beside_torch
import costs
import programs
import whole_process
from rows import DEW, NETS, OURS, TORCH, Row, describe_machine, write_table
from sides import Side

OWN_ROWS = (
    "loop",
    "accumulation",
    "pmap",
    "devices",
    "input",
    "saving",
    "cold-start",
    "picture",
    "convolutions",
    "recompilations",
)
ROWS = (*beside_torch.ROWS, "dew", "process", *OWN_ROWS)
TITLE = """# Speed and memory
`make bench` wrote this page. A speed relative to PyTorch is PyTorch's time divided by ours. A ratio
with a range is the median of interleaved pairs in one run, with the lowest and the highest pair.
Goals were set before anything was measured. dew is another JAX library. `python benchmarks/bench.py
--help` explains the method. `python benchmarks/gpu.py` measures speed on a GPU.
"""


def measure_rows(options: argparse.Namespace) -> Iterator[Row]:
    """Measure the rows that the options name, and yield each when it is done."""
    nets = [net for net in NETS if net.recipe in options.nets]
    pairs = options.pairs
    if set(beside_torch.ROWS) & set(options.rows):
        for net in nets:
            yield from beside_torch.speed(
                net, options.rows, pairs, options.torch_python, options.older_python
            )
    for net in nets:
        if "convolutions" in options.rows:
            yield from programs.naive(net)
        if "devices" in options.rows:
            yield from costs.devices(net, pairs)
    single_net_rows = {
        "dew": lambda: beside_dew.speed(nets[0], pairs, options.dew_python),
        "process": lambda: whole_process.three_steps(nets[0], options.torch_python),
        "loop": lambda: costs.loop(nets[-1], pairs),
        "accumulation": lambda: costs.accumulation(nets[0], pairs),
        "pmap": lambda: costs.routes(nets[0], pairs),
        "input": lambda: costs.input_pipeline(nets[0], pairs),
        "saving": lambda: costs.saving(nets[0], pairs),
        "cold-start": lambda: programs.cold_start(nets[0]),
        "picture": lambda: whole_process.first_picture(pairs),
        "recompilations": programs.recompilations,
    }
    for name, measure in single_net_rows.items():
        if name in options.rows:
            yield from measure()


def describe_versions(options: argparse.Namespace) -> str:
    """The machine, and the versions and devices of each side that takes part."""
    needs_torch = {*beside_torch.ROWS, "process"} & set(options.rows)
    sides = [(sys.executable, OURS)]
    if needs_torch:
        sides.append((options.torch_python, TORCH))
    if options.older_python:
        sides.append((options.older_python, OURS))
    if "dew" in options.rows:
        sides.append((options.dew_python, DEW))
    descriptions = [describe_machine()]
    for python, script in sides:
        with Side(python, script) as side:
            versions = side.ask("versions")
        descriptions.append(", ".join(f"{name} {value}" for name, value in versions.items()))
    return "; ".join(descriptions)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [net.recipe for net in NETS]
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, help="rows to measure")
    parser.add_argument("--nets", nargs="+", choices=names, default=names, help="recipes")
    parser.add_argument("--pairs", type=int, default=5, help="interleaved pairs per ratio")
    parser.add_argument(
        "--torch-python",
        default=sys.executable,
        help="Python of an environment with PyTorch and diffusers",
    )
    parser.add_argument(
        "--dew-python", help="Python of an environment with dewml and jaxtyping, for the row dew"
    )
    parser.add_argument("--older-python", help="Python of an environment with an older JAX")
    parser.add_argument("--out", type=Path, help="page to write; needs all rows and all networks")
    options = parser.parse_args()
    if "dew" in options.rows and options.dew_python is None:
        parser.error("The row dew needs --dew-python: give it, or choose other --rows.")
    is_complete = set(options.rows) == set(ROWS) and options.nets == names
    if options.out is not None and not is_complete:
        parser.error("--out needs all rows and all networks: leave out --rows and --nets.")
    today = datetime.date.today()
    preface = f"{TITLE}\nMeasured on {today}, on {describe_versions(options)}."
    write_table(preface, measure_rows(options), options.out)
