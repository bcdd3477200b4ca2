"""Compile training steps and samplers for GPUs and TPUs that are not there, and count their work.

    pip install --target chips --no-deps jax-cuda12-plugin==V jax-cuda12-pjrt==V libtpu==L
    PYTHONPATH=chips python benchmarks/chips.py [--programs 'cifar10 *'] [--results FOLDER]

V is the version of JAX; L is the version of libtpu in JAX's extra `tpu`. ptxas must be on the path,
as CUDA or the package nvidia-cuda-nvcc installs it. Each program is compiled in a process of its
own and its text is kept in the folder of results, so that an interrupted table goes on where it
ended. A U-Net takes minutes for a GPU and can take a quarter of an hour for a TPU.

The table counts kernels, the bytes that they read and write, and the bytes sent between chips. From
the maker's figures follows the highest MFU: the time of the arithmetic at the chip's peak, divided
by the longest of the times of arithmetic, memory and links at theirs. Nothing runs, so nothing is
measured: a real step also waits for launches and for kernels that miss these rates, while caches
may save some of the bytes.
"""

import argparse
import fnmatch
import gzip
import json
import math
import os
import subprocess
import sys
import time
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))
import chip_programs
import hlo
import jax
from chip_kinds import CHIPS, Chip, devices

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    # A program for a chip that is not there can be written to JAX's cache, but not read again.
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
"""Keeps the plugins from looking for their chips, and JAX from its cache."""
OPTIONS = {"cuda": {"xla_gpu_autotune_level": 0}, "tpu": {}}
"""Autotuning would run kernels on the GPU."""
RATES_HEAD = (
    "| chip | bfloat16, TFLOP/s | memory, GB/s | memory, GB | links, GB/s | source |\n"
    f"|{' --- |' * 6}"
)
KINDS = ("convolution", "product", "reduction", "copy", "other")
HEAD = (
    "| program | chip | kernels | GB moved | convolutions, products, reductions, copies, others "
    "| TFLOP | memory, GB | fits | sent between chips | highest MFU |\n"
    f"|{' --- |' * 10}"
)


class Program(NamedTuple):
    """A row of the table: what is compiled, and for which chips."""

    recipe: str
    work: str
    """step, sampler, pass or init."""
    chip: str
    shape: str = "1x1"
    """The topology, see `chip_kinds.devices`."""
    route: str = "pmap"
    fsdp: int = 1

    def __str__(self) -> str:
        route = f"fsdp {self.fsdp}" if self.fsdp > 1 else self.route
        return f"{self.recipe} {self.work} on {self.chip} {self.shape} by {route}"


def on_one_gpu(recipe: str, chip: str = "h100") -> list[Program]:
    """The training step and the sampler of a recipe."""
    return [Program(recipe, work, chip) for work in ("step", "sampler")]


def on_chips(chip: str, shape: str, fsdp: int) -> list[Program]:
    """The training step of cifar10 on several chips, by each route."""
    routes = [("pmap", 1), ("jit", 1), ("jit", fsdp)]
    return [Program("cifar10", "step", chip, shape, route, size) for route, size in routes]


RECIPES = ("cifar10", "digits", "mnist", "butterflies", "flowers128", "emoji", "cifar10_small")
MORE_RECIPES = ("convunet_cifar10", "convunet_mnist")
LARGE = Program(chip_programs.LARGE, "init", "h100", "1x8", "jit", 8)
PROGRAMS = [
    *on_one_gpu("cifar10"),
    *chain.from_iterable(on_one_gpu(recipe) for recipe in RECIPES[1:]),
    Program(chip_programs.STABLE_DIFFUSION, "pass", "h100"),
    *on_one_gpu("cifar10", "a100"),
    *on_chips("h100", "1x8", 8),
    LARGE,
    Program("digits", "step", "v5e", "2x2"),
    *chain.from_iterable(on_one_gpu(recipe) for recipe in MORE_RECIPES),
    Program("flowers128", "step", "a100"),
    Program(chip_programs.STABLE_DIFFUSION, "pass", "a100"),
    *on_chips("h100", "2x8", 8),
    *on_chips("v5e", "2x2", 4),
    Program("cifar10", "step", "v6e", "2x2"),
    Program("cifar10", "step", "v5p", "2x2x1"),
    Program("cifar10", "step", "v5e", "16x16"),
]
"""The most telling ones first. The other recipes have the networks of these, or almost."""


def rates() -> str:
    """The table of the makers' rates."""
    rows = (
        f"| {chip.name} | {chip.peak:g} | {chip.bandwidth:,} | {chip.memory} | {chip.link} "
        f"| {chip.source} |"
        for chip in CHIPS.values()
    )
    return "\n".join([RATES_HEAD, *rows])


def build(program: Program) -> chip_programs.Work:
    """The function of a program and its abstract arguments."""
    chips = devices(program.chip, program.shape)
    if program.work == "pass":
        return chip_programs.stable_diffusion_pass(chips)
    if program.work == "init":
        return chip_programs.initialisation(chips, program.fsdp)
    config = chip_programs.load(program.recipe)
    if program.work == "sampler":
        return chip_programs.sampler(config, chips)
    return chip_programs.training_step(config, chips, program.route, program.fsdp)


def compile_work(work: chip_programs.Work, chip: Chip) -> tuple[str, dict[str, Any]]:
    """Compile for a chip. Return the text of the optimized module, and figures beside it."""
    began = time.perf_counter()
    lowered = work.function.trace(*work.arguments).lower(lowering_platforms=(chip.platform,))
    compiled = lowered.compile(compiler_options=OPTIONS[chip.platform])
    memory = compiled.memory_analysis()
    figures = {
        "jax": jax.__version__,
        "seconds": round(time.perf_counter() - began),
        "flops": work.flops,
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
    }
    return compiled.as_text(), figures


def row(program: Program, text: str, figures: dict[str, Any]) -> str:
    """The row of a compiled program."""
    chip = CHIPS[program.chip]
    count = num_chips(program)
    kernels = hlo.kernels(text)
    moved: Counter[str] = Counter()
    for kernel in kernels:
        moved[kernel.kind] += kernel.bytes * kernel.times
    sent = sum(bytes_sent(kernel, count) * kernel.times for kernel in kernels)
    num_collectives = sum(kernel.times for kernel in kernels if kernel.kind == "collective")
    total = sum(moved.values())
    flops = figures["flops"] / count
    seconds = chip.shortest_time(flops, total, sent)
    needed = sum(figures[name] for name in ("arguments", "outputs", "temporaries"))
    cells = [
        str(program),
        f"{count} x {chip.name}",
        f"{sum(kernel.times for kernel in kernels):,}",
        f"{total / 1e9:.1f}",
        ", ".join(f"{moved[kind] / 1e9:.1f}" for kind in KINDS),
        f"{flops / 1e12:.2f}",
        f"{needed / 1e9:.2f}",
        "yes" if needed <= chip.memory * 1e9 else "no",
        f"{sent / 1e6:.0f} MB in {num_collectives}" if num_collectives else "",
        f"{chip.mfu(flops, seconds):.0f}%" if flops else "",
    ]
    return f"| {' | '.join(cells)} |"


def num_chips(program: Program) -> int:
    """The number of chips of a program's topology."""
    return math.prod(int(side) for side in program.shape.split("x"))


def bytes_sent(kernel: hlo.Kernel, count: int) -> float:
    """The bytes that a chip sends for a collective, in a ring over all `count` chips."""
    if kernel.kind != "collective":
        return 0.0
    # Each of the count - 1 rounds of a ring sends one part of `count`; a sum over all needs two
    # rings. The result of a reduce-scatter is such a part.
    parts = {"all-reduce": 2 / count, "reduce-scatter": 1}.get(kernel.operation, 1 / count)
    return (count - 1) * parts * kernel.result_bytes


def places(text: str, count: int) -> str:
    """The operations of a program that move the most bytes, with their kernels."""
    moved: Counter[str] = Counter()
    launched: Counter[str] = Counter()
    for kernel in hlo.kernels(text):
        place = f"{kernel.kind}: {kernel.place}"
        moved[place] += kernel.bytes * kernel.times
        launched[place] += kernel.times
    return "\n".join(
        f"{size / 1e9:8.2f} GB{launched[place]:6,} kernels  {place}"
        for place, size in moved.most_common(count)
    )


def file_of(results: Path, program: Program) -> Path:
    """Where the text of a compiled program is kept; its figures lie beside it."""
    return results / f"{str(program).replace(' ', '-')}.txt.gz"


def compile_one(program: Program, results: Path) -> None:
    """Compile a program and keep its text and its figures."""
    keep(program, results, *compile_work(build(program), CHIPS[program.chip]))


def keep(program: Program, results: Path, text: str, figures: dict[str, Any]) -> None:
    """Write the text and the figures of a compiled program, the figures last."""
    file = file_of(results, program)
    file.write_bytes(gzip.compress(text.encode()))
    file.with_suffix(".json").write_text(json.dumps(figures))


def ensure_compiled(program: Program, results: Path, limit: float) -> bool:
    """Compile a program in another process unless it is kept. Return whether it is there."""
    if file_of(results, program).with_suffix(".json").exists():
        return True
    command = [sys.executable, __file__, "--results", str(results), "--one", str(program)]
    try:
        return subprocess.run(command, env=os.environ | ENVIRONMENT, timeout=limit).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def main(options: argparse.Namespace) -> None:
    """Print the rates, and the table row by row."""
    options.results.mkdir(parents=True, exist_ok=True)
    if options.one:
        program = next(each for each in PROGRAMS if str(each) == options.one)
        compile_one(program, options.results)
        return
    print(f"{rates()}\n\n{HEAD}", flush=True)
    for program in PROGRAMS:
        if not fnmatch.fnmatch(str(program), options.programs):
            continue
        if not ensure_compiled(program, options.results, options.limit):
            print(f"{program}: not compiled, see above.", file=sys.stderr)
            continue
        file = file_of(options.results, program)
        text = gzip.decompress(file.read_bytes()).decode()
        print(row(program, text, json.loads(file.with_suffix(".json").read_text())), flush=True)
        if options.places:
            print(places(text, options.places))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--programs", default="*", help="pattern of the programs to show")
    parser.add_argument("--results", type=Path, default=Path("chip_results"))
    parser.add_argument("--limit", type=float, default=3600, help="seconds for one program")
    parser.add_argument("--places", type=int, default=0, help="show where the bytes are moved")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    main(parser.parse_args())
