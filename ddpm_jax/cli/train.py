"""The command that trains a recipe: config -> data -> state -> loop."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ddpm_jax.cli import arguments
from ddpm_jax.cli.recipes import explain_recipes, load_recipe, replace_part
from ddpm_jax.config import Config
from ddpm_jax.devices import hosts, parallel
from ddpm_jax.errors import check
from ddpm_jax.runs import directory, export, loop
from ddpm_jax.runs.initial_weights import with_net_of
from ddpm_jax.runs.progress import banner


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions:
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

    def __post_init__(self):
        check(self.push is not None or not self.private, "--private is for --push")


def main(args: list[str], recipes: Path) -> None:
    """Train what the command line says, a recipe of the folder `recipes`."""
    name, args = arguments.take_option(args, "--config")
    if name is None:
        raise SystemExit(
            explain_recipes("train.py", recipes, asked=bool({"-h", "--help"} & set(args)))
        )
    run = parse(name, args, recipes)
    several = hosts.distributed(run.coordinator, run.hosts, run.host)
    with several, arguments.one_line_errors(run.debug), hosts.explain_lost_host():
        config = use_devices(run)
        with hosts.silence_non_primary():
            status = dry_run(config, run) if run.dry_run else train(config, run)
    if status:
        raise SystemExit(status)


def parse(name: str, args: list[str], recipes: Path) -> TrainOptions:
    """The run that the command line asks for, of a recipe."""
    recipe = load_recipe(name, recipes)
    for field in ("data", "model"):
        chosen, args = arguments.take_option(args, f"--{field}")
        recipe = recipe if chosen is None else replace_part(recipe, field, chosen)
    init, args = arguments.take_option(args, "--init-from")
    check(init is None or not chosen, "--init-from says which network it is: leave --model out")
    recipe = recipe if init is None else with_net_of(recipe, init)
    return arguments.parse(
        TrainOptions,
        args,
        TrainOptions(config=recipe, workdir=Path("runs") / name),
        f"train.py --config {name}",
    )


def use_devices(run: TrainOptions) -> Config:
    """Set up the devices; return the config with their number.

    A run that resumes takes as many CPU devices as before, unless the command line gives a number.
    """
    settings, size, alone = (
        run.config.parallel,
        run.config.training.micro_batch_size,
        run.coordinator is None,
    )
    before = directory.cpu_devices(run.workdir) if alone and not run.overwrite else None
    wanted = settings.cpu_devices or (before if alone else 1)
    cores, same = run.config.cores_per_device(), run.deterministic
    count = arguments.set_up_jax(size, run.platform, run.compilation_cache, wanted, cores, same)
    parallel.check_divides(size, settings.fsdp)
    kept = dataclasses.replace(settings, cpu_devices=count if alone else settings.cpu_devices)
    return dataclasses.replace(run.config, parallel=kept)


def dry_run(config: Config, run: TrainOptions) -> int:
    """Print what would be trained, after the checks of a run."""
    if not run.overwrite:
        directory.resume(config, run.workdir)
    print(banner(config, run.workdir))
    return 0


def train(config: Config, run: TrainOptions) -> int:
    """Train; returns the exit status."""
    with directory.lock(run.workdir):
        start = 0 if run.overwrite else hosts.broadcast(directory.resume(config, run.workdir))
        print(banner(config, run.workdir))
        options: dict[str, Any] = {"overwrite": run.overwrite, "previewed": run.preview}
        if run.push is not None:
            options["on_start"] = partial(export.prepare_upload, run.push, run.private, config)
            options["on_save"] = export.make_uploader(run.push, run.private, config, run.workdir)
        return loop.train(config, run.workdir, start, **options)
