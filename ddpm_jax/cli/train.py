"""The main function of train.py and ddpm-jax-train: train a recipe, or resume its run."""

import dataclasses
import inspect
import math
import operator
import re
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ddpm_jax.cli import arguments
from ddpm_jax.cli.recipes import (
    FOLDER,
    description,
    explain_recipes,
    find_recipe,
    load_recipe,
    replace_part,
)
from ddpm_jax.cli.sampling_arguments import without_replaced_timesteps
from ddpm_jax.config import Config, RunConfig, with_unchecked
from ddpm_jax.devices import hosts, memory, parallel
from ddpm_jax.devices import platform as platforms
from ddpm_jax.errors import check
from ddpm_jax.latent_config import LatentConfig
from ddpm_jax.runs import directory, export, latents, loop, tasks
from ddpm_jax.runs.initial_weights import pretrained_parts
from ddpm_jax.runs.progress import banner

OVERRIDES = (
    ("training", "steps", "epochs"),
    ("autoencoder.training", "steps", "epochs"),
    ("checkpoint", "every", "every_epochs"),
    ("log", "samples_every", "samples_every_epochs"),
)
"""Parts of configs, each with a setting and one that it overrides."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Train a recipe, or resume its run.

    `--data NAME` and `--model NAME` select another data source or network; the settings `--data.*`
    and `--model.*` are then those of the new one. `--init-from` starts from the network, weights,
    noise schedule and target of a run, of a network of the package, of a folder or hub repository
    in the diffusers layout, or of a state dict of the ConvBlock U-Net; with `--lora.rank` it trains
    a LoRA on them.
    """

    config: Annotated[Config, tyro.conf.arg(name="")]
    workdir: Path
    """Directory for checkpoints, samples and logs."""
    overwrite: bool = False
    """Delete the run in the workdir and start a new one."""
    dry_run: bool = False
    """Print the resolved recipe, data, devices and parameter count, and stop. Needs no data."""
    preview: bool = False
    """Also write pictures of the data and of the noising process before training."""
    push: str | None = None
    """Hub repository owner/name to upload each checkpoint to, in the diffusers layout."""
    private: bool = False
    """Create that repository as a private one; refuse to upload to a public one."""
    coordinator: str | None = None
    """On several hosts: HOST:PORT of the first, or auto under Slurm, Kubernetes or on a TPU pod."""
    hosts: int | None = None
    """Number of hosts. Not needed with --coordinator auto."""
    host: int | None = None
    """Index of this host, from 0. Not needed with --coordinator auto."""
    platform: Literal["cpu", "gpu", "tpu"] | None = None
    """Kind of device to use. It is an error if there is none."""
    deterministic: bool = False
    """Make a GPU compute the same bits in every run, at some cost in speed. A CPU always does."""
    compilation_cache: bool = True
    """Cache compiled programs in the user's cache folder."""
    debug: bool = False
    """Show the traceback of an error."""

    def __post_init__(self):
        check(
            self.push is not None or not self.private,
            "--private is for --push: add --push owner/name, or leave --private out.",
        )
        check(
            self.push is None or not self.config.lora.rank,
            "A LoRA run cannot --push while it trains: push it afterwards with "
            "python -m ddpm_jax.export.",
        )


def run() -> None:
    """Run the command with the arguments of this process."""
    arguments.run(main)


def main(args: list[str], recipes: Path = FOLDER) -> None:
    """Run the command with these arguments; `recipes` is the folder of the recipes."""
    name, args = arguments.take_option(args, "--config")
    if name is None:
        asked = bool({"-h", "--help"} & set(args))
        raise SystemExit(explain_recipes(arguments.command("train"), recipes, asked))
    options = parse(name, args, recipes)
    if platforms.will_use_cpu(options.platform):
        # JAX has not started its threads yet.
        memory.use_one_heap()
    distributed = hosts.distributed(options.coordinator, options.hosts, options.host)
    with distributed, arguments.one_line_errors(options.debug), hosts.explain_lost_host():
        config = use_devices(options)
        with hosts.silence_non_primary():
            status = dry_run(config, options) if options.dry_run else train(config, options)
    if status:
        raise SystemExit(status)


def parse(name: str, args: list[str], recipes: Path) -> TrainOptions:
    """Parse the options of the command, with the recipe `name` as the default of its settings."""
    recipe = load_recipe(name, recipes)
    data, args = arguments.take_option(args, "--data")
    if data is not None:
        recipe = replace_part(recipe, "data", data)
    model, args = arguments.take_option(args, "--model")
    if model is not None:
        recipe = replace_part(recipe, "model", model)
    init_from, args = arguments.take_option(args, "--init-from")
    check(
        init_from is None or not model,
        "--init-from determines the network: leave --model out.",
    )
    if init_from is not None:
        recipe = with_unchecked(recipe, **pretrained_parts(recipe, init_from))
    sampler, args = arguments.take_option(args, "--sampling.sampler")
    if sampler is not None:
        recipe = with_unchecked(recipe, sampling=recipe.sampling.override(sampler=sampler))
    sampling = without_replaced_timesteps(recipe.sampling, args, "--sampling.")
    if any(arg.partition("=")[0] == "--sampling.options" for arg in args):
        # tyro would take each option of the recipe by a flag of its own, and no others.
        sampling = dataclasses.replace(sampling, options={})
    recipe = with_unchecked(recipe, sampling=sampling)
    workdir = Path("runs") / Path(name.removesuffix(".py")).name
    options = arguments.parse(
        TrainOptions,
        args,
        TrainOptions(config=recipe, workdir=workdir),
        f"{arguments.command('train')} --config {name}",
        describe(find_recipe(name, recipes)),
    )
    check_precedence(options.config, recipe)
    check(
        init_from is None or not is_same_folder(init_from, options.workdir),
        f"--init-from {init_from} is the directory of this run: give another --workdir.",
    )
    return options


def describe(recipe: Path) -> str:
    """The docstrings of the command's options and of a recipe, with a paragraph for each entry."""
    of_recipe = re.sub(r"\n(?=[A-Z]\w*: )", "\n\n", description(recipe))
    return f"{inspect.getdoc(TrainOptions)}\n\nThe recipe: {of_recipe}"


def is_same_folder(ckpt: str, workdir: Path) -> bool:
    """Whether `ckpt` is the path of the directory `workdir`, and that directory exists."""
    return Path(ckpt).exists() and workdir.exists() and workdir.samefile(ckpt)


def check_precedence(config: Config, recipe: Config) -> None:
    """Raise ValueError if the command line changed a setting that one of the recipe overrides."""
    for part, stronger, weaker in OVERRIDES:
        if part.startswith("autoencoder.") and not isinstance(config, LatentConfig):
            continue
        ours, theirs = map(operator.attrgetter(part), (config, recipe))
        steps = getattr(ours, stronger)
        flag = f"--{part}.{stronger.replace('_', '-')}"
        check(
            steps is None or getattr(ours, weaker) == getattr(theirs, weaker),
            f"{flag} is {steps} and overrides {part}.{weaker}: give {flag} None, too.",
        )


def use_devices(options: TrainOptions) -> Config:
    """Set up the devices; return the config with the number of CPU devices in use.

    On one host a resumed run uses as many CPU devices as before, unless the command line sets
    their number.
    """
    config = options.config
    settings = config.parallel
    batch_sizes = config.micro_batch_sizes
    single_host = options.coordinator is None
    previous = None
    if single_host and not options.overwrite:
        previous = directory.cpu_devices(options.workdir)
    num_devices = arguments.set_up_jax(
        math.gcd(*batch_sizes),
        options.platform,
        options.compilation_cache,
        cpu_devices=settings.cpu_devices or (previous if single_host else 1),
        cores_per_device=config.cores_per_device(),
        deterministic=options.deterministic,
    )
    if single_host:
        settings = dataclasses.replace(settings, cpu_devices=num_devices)
    return dataclasses.replace(config, parallel=settings)


def check_batches(config: Config) -> None:
    """Raise ValueError unless the devices divide the batches of all runs of a recipe."""
    for batch_size in config.micro_batch_sizes:
        parallel.check_divides(batch_size, config.parallel.fsdp)


def dry_run(config: Config, options: TrainOptions) -> int:
    """Check whether the recipe may resume, and print it resolved; return exit status 0."""
    _start(config, options.workdir, options)
    if isinstance(config, LatentConfig) and config.trains_autoencoder:
        _start(config.autoencoder_config, options.workdir / directory.AUTOENCODER, options)
    check_batches(config)
    tasks.task_of(config).check(config)
    print(banner(config, options.workdir))
    return 0


def train(config: Config, options: TrainOptions) -> int:
    """Train or resume the run in the workdir; return the exit status.

    A latent run begins with the run of its autoencoder, in a folder of the workdir. It does not if
    it starts from another network, whose autoencoder it shares.
    """
    workdir = options.workdir
    check(
        options.push is None or not isinstance(config, LatentConfig),
        "A run on latents is uploaded when it has ended: leave out --push, and run "
        "python -m ddpm_jax.export --push.",
    )
    if isinstance(config, LatentConfig):
        # Raise now what would end the run after the autoencoder's, or after encoding the images.
        tasks.task_of(config).check(config)
    with directory.lock(workdir):
        start = _start(config, workdir, options)
        check_batches(config)
        if isinstance(config, LatentConfig) and config.trains_autoencoder:
            if status := _train_autoencoder(config, start, options):
                return status
            options = dataclasses.replace(options, overwrite=False)
        callbacks: dict[str, Any] = {}
        if options.push is not None:
            repo = options.push
            private = options.private
            callbacks["on_start"] = partial(export.prepare_upload, repo, private, config)
            callbacks["on_save"] = export.make_uploader(repo, private, config, workdir)
        status = _train_run(config, workdir, start, options, callbacks)
        if status == 0:
            prompt = " --prompt TEXT" if isinstance(config, LatentConfig) else ""
            sample = f"{arguments.command('sample')} --ckpt {shlex.quote(str(workdir))}{prompt}"
            print(f"draw samples with: {sample}")
        return status


def _train_autoencoder(config: LatentConfig, start: int, options: TrainOptions) -> int:
    """Train or resume the autoencoder of a latent run at step `start`; return the exit status."""
    workdir = options.workdir
    first = config.autoencoder_config
    folder = workdir / directory.AUTOENCODER
    callbacks: dict[str, Callable] = {}
    if start:
        callbacks["on_start"] = partial(latents.check_not_trained_further, workdir, start)
    return _train_run(first, folder, _start(first, folder, options), options, callbacks)


def _start(config: RunConfig, folder: Path, options: TrainOptions) -> int:
    """The step that the run in a folder goes on from. Raise as `directory.resume` does."""
    return 0 if options.overwrite else hosts.broadcast(directory.resume(config, folder))


def _train_run(
    config: RunConfig,
    folder: Path,
    start: int,
    options: TrainOptions,
    callbacks: dict[str, Any],
) -> int:
    """Train the run in one folder from step `start`."""
    print(banner(config, folder))
    return loop.train(
        config,
        folder,
        start,
        # The second run of a latent run has no use for the files of an earlier one.
        overwritten=options.workdir if options.overwrite else None,
        with_preview=options.preview,
        **callbacks,
    )
