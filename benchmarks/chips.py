"""Compile training steps and samplers for GPUs and TPUs that are not there, and count their work.

    pip install --target chips --no-deps jax-cuda12-plugin==V jax-cuda12-pjrt==V \\
        nvidia-cudnn-cu12 libtpu==L
    PYTHONPATH=chips python benchmarks/chips.py [--programs 'cifar10 *'] [--results FOLDER]

V is the version of JAX; L is the version of libtpu in JAX's extra `tpu`. ptxas must be on the path,
as CUDA or the package nvidia-cuda-nvcc installs it. Each program is compiled in a process of its
own and its text is kept in the folder of results, so that an interrupted table goes on where it
ended. A kept program is compiled again if the code, the compiler or its options have changed. A
U-Net takes minutes for a GPU and 20 minutes or more for a TPU.

The table counts kernels, the bytes that they read and write, and the bytes sent between chips.
Arithmetic, memory and links each take a time at the maker's rate. The highest MFU is the first of
these times divided by the longest. Nothing runs, so nothing is measured: a real step also waits for
launches and for kernels that miss these rates, while caches may save some of the bytes.
"""

import argparse
import fnmatch
import gzip
import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))
import chip_programs
import hlo
import jax
import links
from chip_kinds import CHIPS, Chip, devices
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from ddpm_jax.models.kernels import cudnn_attention

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    # A program for a chip that is not there can be written to JAX's cache, but not read again.
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # Several tables may be compiled at once: no process has a chip to itself.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""Keeps the plugins from looking for their chips, and JAX from its cache."""
OPTIONS = {"cuda": {"xla_gpu_autotune_level": 0}, "tpu": {}}
"""Autotuning would run kernels on the GPU."""
ADDRESS = re.compile(r'backend_config = "\d+"')
"""The address of a process in a program that splits attention by cuDNN over several GPUs."""
COMPILERS = {"cuda": "jax-cuda12-pjrt", "tpu": "libtpu"}
"""The packages that compile for a platform."""
RATES_HEAD = (
    "| chip | bfloat16, TFLOP/s | memory, GB/s | memory, GB | links, GB/s | adapter, GB/s "
    f"| source |\n|{' --- |' * 7}"
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
        name = f"{self.recipe} {self.work} on {self.chip} {self.shape}"
        if not self.is_split:
            return name
        return f"{name} by {f'fsdp {self.fsdp}' if self.fsdp > 1 else self.route}"

    @property
    def is_split(self) -> bool:
        """Whether all chips work on it. A sampler and a pass run on the first."""
        return self.work in ("step", "init")


def on_one_gpu(recipe: str, chip: str = "h100") -> list[Program]:
    """The training step and the sampler of a recipe."""
    return [Program(recipe, work, chip) for work in ("step", "sampler")]


def on_chips(recipe: str, chip: str, shape: str, fsdp: int) -> list[Program]:
    """The training step of a recipe on several chips, by each route."""
    routes = [("pmap", 1), ("jit", 1), ("jit", fsdp)]
    return [Program(recipe, "step", chip, shape, route, size) for route, size in routes]


RECIPES = (
    "cifar10",
    "digits",
    "mnist",
    "butterflies",
    "flowers128",
    "cifar10_small",
    "convunet_cifar10",
)
TPUS = (("v5e", "2x2"), ("v6e", "2x2"), ("v5p", "2x2x1"), ("v5e", "16x16"))
LARGE = Program(chip_programs.LARGE, "init", "h100", "1x8", "jit", 8)
PROGRAMS = [
    *chain.from_iterable(map(on_one_gpu, RECIPES)),
    Program("emoji", "step", "h100"),
    Program(chip_programs.STABLE_DIFFUSION, "pass", "h100"),
    *on_one_gpu("cifar10", "a100"),
    Program("flowers128", "step", "a100"),
    Program(chip_programs.STABLE_DIFFUSION, "pass", "a100"),
    *on_chips("cifar10", "h100", "1x8", 8),
    *on_chips("cifar10", "h100", "2x8", 8),
    *on_chips("flowers128", "h100", "1x8", 8),
    LARGE,
    *(Program("digits", "step", *tpu) for tpu in TPUS),
    Program("digits", "sampler", "v5e", "2x2"),
    *(Program(chip_programs.STABLE_DIFFUSION, "pass", *tpu) for tpu in TPUS[:3]),
    *(Program("cifar10", "step", *tpu) for tpu in TPUS),
    Program("flowers128", "step", "v5e", "2x2"),
]
"""The slow ones last. The other recipes have the networks of these, or almost."""


def rates() -> str:
    """The table of the makers' rates."""
    rows = (
        f"| {chip.name} | {chip.peak:g} | {chip.bandwidth:,} | {chip.memory} | {chip.link} "
        f"| {chip.adapter or ''} | {chip.source} |"
        for chip in CHIPS.values()
    )
    return "\n".join([RATES_HEAD, *rows])


def build(program: Program) -> chip_programs.Work:
    """The function of a program and its abstract arguments."""
    chips = devices(program.chip, program.shape)
    if CHIPS[program.chip].platform == "cuda":
        require_cudnn()
    if program.work == "pass":
        return chip_programs.stable_diffusion_pass(chips)
    if program.work == "init":
        return chip_programs.initialisation(chips, program.fsdp)
    config = chip_programs.load(program.recipe)
    if program.work == "sampler":
        return chip_programs.sampler(config, chips)
    return chip_programs.training_step(config, chips, program.route, program.fsdp)


def require_cudnn() -> None:
    """End the program if cuDNN is missing: attention would be compiled in its plain form."""
    try:
        cudnn.check_cudnn_version()
    except RuntimeError as error:
        raise SystemExit(
            f"error: {error} Install nvidia-cudnn-cu12 in the folder of the plugins."
        ) from error


def lower(work: chip_programs.Work, chip: Chip) -> jax.stages.Lowered:
    """Trace a program for a chip. Nothing is compiled yet."""

    def has_capability(needed: str) -> bool:
        return chip.capability >= version(needed)

    # JAX and this library ask the GPUs of this machine which attention cuDNN computes. Here the
    # answer is that of the chip.
    with (
        mock.patch.object(cudnn, "check_compute_capability", has_capability),
        mock.patch.object(cudnn_attention, "gpu_generations", return_value=[chip.capability[0]]),
    ):
        return work.function.trace(*work.arguments).lower(lowering_platforms=(chip.platform,))


def version(text: str) -> tuple[int, ...]:
    """The numbers of a version such as 9.0."""
    return tuple(map(int, text.split(".")))


def source(lowered: jax.stages.Lowered, chip: Chip) -> dict[str, Any]:
    """All that decides what a program is compiled to."""
    return {
        "jax": jax.__version__,
        "compiler": importlib.metadata.version(COMPILERS[chip.platform]),
        "options": OPTIONS[chip.platform],
        "target": chip.target,
        "program": hashlib.sha256(ADDRESS.sub("", lowered.as_text()).encode()).hexdigest(),
    }


def compile_lowered(lowered: jax.stages.Lowered, chip: Chip) -> tuple[str, dict[str, Any]]:
    """Compile for a chip. Return the text of the optimized module, and figures beside it."""
    began = time.perf_counter()
    compiled = lowered.compile(compiler_options=OPTIONS[chip.platform])
    memory = compiled.memory_analysis()
    figures = {
        "seconds": round(time.perf_counter() - began),
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
    }
    return compiled.as_text(), figures


def row(program: Program, text: str, figures: dict[str, Any]) -> str:
    """The row of a compiled program."""
    chip = CHIPS[program.chip]
    count = links.num_chips(program.shape) if program.is_split else 1
    kernels = hlo.kernels(text)
    launched, moved = hlo.totals(kernels, lambda kernel: kernel.kind)
    sent = sum(links.bytes_sent(kernel, count) * kernel.times for kernel in kernels)
    sending = sum(
        links.seconds_sending(kernel, chip, program.shape) * kernel.times for kernel in kernels
    )
    flops = figures["flops"] / count
    seconds = chip.shortest_time(flops, moved.total(), sending)
    needed = sum(figures[name] for name in ("arguments", "outputs", "temporaries"))
    num_collectives = launched["collective"]
    cells = [
        str(program),
        f"{count} x {chip.name}",
        f"{launched.total():,}",
        f"{moved.total() / 1e9:.1f}",
        ", ".join(f"{moved[kind] / 1e9:.1f}" for kind in KINDS),
        f"{flops / 1e12:.2f}",
        f"{needed / 1e9:.2f}",
        "yes" if needed <= chip.allotted * 1e9 else "no",
        f"{sent / 1e6:.0f} MB in {num_collectives}" if num_collectives else "",
        f"{chip.mfu(flops, seconds):.0f}%" if flops else "",
    ]
    return f"| {' | '.join(cells)} |"


def places(text: str, count: int) -> str:
    """The operations of a program that move the most bytes, with their kernels."""
    launched, moved = hlo.totals(hlo.kernels(text), lambda kernel: f"{kernel.kind}: {kernel.place}")
    return "\n".join(
        f"{size / 1e9:8.2f} GB{launched[place]:6,} kernels  {place}"
        for place, size in moved.most_common(count)
    )


def file_of(results: Path, program: Program) -> Path:
    """Where the text of a compiled program is kept; its figures lie beside it."""
    return results / f"{str(program).replace(' ', '-')}.txt.gz"


def compile_one(program: Program, results: Path) -> None:
    """Compile a program and keep its text and its figures, unless the same one is kept."""
    chip = CHIPS[program.chip]
    work = build(program)
    lowered = lower(work, chip)
    new = source(lowered, chip)
    kept = kept_figures(program, results)
    if kept.get("source") == new:
        # The count of operations may have changed.
        figures = kept | {"flops": work.flops}
        file_of(results, program).with_suffix(".json").write_text(json.dumps(figures))
        return
    text, figures = compile_lowered(lowered, chip)
    keep(program, results, text, {"source": new, "flops": work.flops} | figures)


def kept_figures(program: Program, results: Path) -> dict[str, Any]:
    """The figures of a program that is kept; none if it is not."""
    file = file_of(results, program).with_suffix(".json")
    return json.loads(file.read_text()) if file.exists() else {}


def keep(program: Program, results: Path, text: str, figures: dict[str, Any]) -> None:
    """Write the text and the figures of a compiled program, the figures last."""
    file = file_of(results, program)
    file.with_suffix(".json").unlink(missing_ok=True)
    file.write_bytes(gzip.compress(text.encode()))
    file.with_suffix(".json").write_text(json.dumps(figures))


def ensure_compiled(program: Program, results: Path, limit: float) -> bool:
    """Run `compile_one` in another process. Return whether it succeeded."""
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
        text = gzip.decompress(file_of(options.results, program).read_bytes()).decode()
        print(row(program, text, kept_figures(program, options.results)), flush=True)
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
