"""Trains a recipe: config -> data -> state -> loop.

    python train.py --config digits
    python train.py --config cifar10 --workdir runs/a --optimizer.learning-rate 1e-4 --training.steps 2000
    python train.py --config cifar10 --data folder --data.path my_pictures --model conv_unet
    python train.py --config butterflies --init-from google/ddpm-cat-256 --push owner/name

The same command again resumes where it stopped. `--config NAME --help` lists every setting.
"""

import os
import sys

by_itself = __name__ == "__main__" and sys.orig_argv[1:] == sys.argv
if by_itself and sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"  # a step's memory is new each time: in large pages
    os.execv(sys.executable, [sys.executable, *sys.argv])

import contextlib
import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ddpm_jax import command_line, hosts, loop, parallel, workdir
from ddpm_jax.config import Config
from ddpm_jax.errors import check
from ddpm_jax.init_from import with_net_of
from ddpm_jax.reporting import banner

CONFIGS = Path(__file__).parent / "configs"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A run of one recipe; `--data NAME` and `--model NAME` choose another source or network before all else.

    `--init-from` DIR, or a repository of the hub, takes a trained network, its weights and what it was trained for.
    """

    config: Annotated[Config, tyro.conf.arg(name="")]
    workdir: Path
    """Where checkpoints, samples and logs go."""
    overwrite: bool = False
    """Throw away the run that is in the workdir and start afresh."""
    dry_run: bool = False
    """Print the resolved recipe, its data, devices and parameter count, and stop; needs no data on disk."""
    preview: bool = False
    """Also leave pictures of the data and of the noising process."""
    push: str | None = None
    """A repository of the hub, owner/name, to which each save is uploaded in the layout of diffusers."""
    private: bool = False
    """Make that one private."""
    coordinator: str | None = None
    """On several hosts: HOST:PORT of the first, or `auto` under Slurm, Kubernetes or on a TPU pod."""
    hosts: int | None = None
    """How many hosts there are; not with `auto`."""
    host: int | None = None
    """Which of them this is, from 0; not with `auto`."""
    platform: Literal["cpu", "gpu", "tpu"] | None = None
    """Insist on a kind of device."""
    deterministic: bool = False
    """On a GPU, the same bits each time, at some cost; a CPU gives them anyway."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache folder."""
    debug: bool = False
    """Show where an error was raised."""


def main(args: list[str]) -> None:
    """Trains what the command line says."""
    name, args = command_line.take_option(args, "--config")
    if name is None:
        raise SystemExit(command_line.explain_recipes("train.py", CONFIGS, asked=bool({"-h", "--help"} & set(args))))
    run = parse(name, args)
    status = 0
    several = hosts.together(run.coordinator, run.hosts, run.host)
    with several, command_line.one_line_errors(run.debug), hosts.loss_named():
        config = use_devices(run)
        with hosts.others_silent(), contextlib.nullcontext() if run.dry_run else workdir.alone(run.workdir):
            start = 0 if run.overwrite else hosts.of_first(workdir.resume(config, run.workdir))
            print(banner(config, run.workdir))
            if not run.dry_run:
                more = {"overwrite": run.overwrite, "previewed": run.preview}
                status = loop.train(config, run.workdir, start, **more, push=run.push, private=run.private)
    if status:
        raise SystemExit(status)


def parse(name: str, args: list[str]) -> Run:
    """What the command line says of a recipe."""
    recipe = command_line.load_recipe(name, CONFIGS)
    for field in ("data", "model"):
        chosen, args = command_line.take_option(args, f"--{field}")
        recipe = recipe if chosen is None else command_line.choose(recipe, field, chosen)
    init, args = command_line.take_option(args, "--init-from")
    check(init is None or not chosen, "--init-from says which network it is: leave --model out")
    recipe = recipe if init is None else with_net_of(recipe, init)
    return command_line.parse(Run, args, Run(config=recipe, workdir=Path("runs") / name), f"train.py --config {name}")


def use_devices(run: Run) -> Config:
    """The config with the number of CPU devices: that of the run which goes on, if any."""
    settings, size, alone = run.config.parallel, run.config.training.micro_batch_size, run.coordinator is None
    before = workdir.cpu_devices(run.workdir) if alone and not run.overwrite else None
    wanted = settings.cpu_devices or (before if alone else 1)
    cores, same = run.config.cores_each(), run.deterministic
    count = command_line.set_up_jax(size, run.platform, run.compilation_cache, wanted, cores, same)
    parallel.check_divides(size, settings.fsdp)
    kept = dataclasses.replace(settings, cpu_devices=count if alone else settings.cpu_devices)
    return dataclasses.replace(run.config, parallel=kept)


if __name__ == "__main__":
    with command_line.one_line_errors("--debug" in sys.argv):
        main(sys.argv[1:])
