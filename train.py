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
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import tyro

from ddpm_jax import command_line, export, optimizer, parallel, training, workdir
from ddpm_jax.checkpoint import Checkpoints, restore
from ddpm_jax.config import Config, in_steps, to_json
from ddpm_jax.data import batch_at, check_labels, stream
from ddpm_jax.errors import check
from ddpm_jax.init_from import first_params, with_net_of
from ddpm_jax.interruption import Interruption
from ddpm_jax.on_run import TrainedRun
from ddpm_jax.reporting import Reporter, banner, preview

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
    platform: Literal["cpu", "gpu", "tpu"] | None = None
    """Insist on a kind of device."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache folder."""
    debug: bool = False
    """Show where an error was raised."""


def main(args: list[str]) -> None:
    """Trains what the command line says."""
    name, args = command_line.take_option(args, "--config")
    if name is None:
        raise SystemExit(command_line.explain_recipes("train.py", CONFIGS, asked=bool({"-h", "--help"} & set(args))))
    recipe = command_line.load_recipe(name, CONFIGS)
    for field in ("data", "model"):
        chosen, args = command_line.take_option(args, f"--{field}")
        recipe = recipe if chosen is None else command_line.choose(recipe, field, chosen)
    init, args = command_line.take_option(args, "--init-from")
    check(init is None or not chosen, "--init-from says which network it is: leave --model out")
    recipe = recipe if init is None else with_net_of(recipe, init)
    run = command_line.parse(Run, args, Run(config=recipe, workdir=Path("runs") / name), f"train.py --config {name}")
    with contextlib.nullcontext() if run.dry_run else workdir.alone(run.workdir):
        config, start = (run.config, 0) if run.overwrite else workdir.resume(run.config, run.workdir)
        config = use_devices(run, config)
        print(banner(config, run.workdir))
        if not run.dry_run:
            train(config, run, start)


def use_devices(run: Run, config: Config) -> Config:
    """The config with the number of CPU devices."""
    settings, size = config.training, config.training.micro_batch_size
    wanted = settings.cpu_devices, config.cores_each()
    count = command_line.set_up_jax(size, run.platform, run.compilation_cache, *wanted)
    parallel.check_divides(size)
    return dataclasses.replace(config, training=dataclasses.replace(settings, cpu_devices=count))


def train(config: Config, run: Run, start: int) -> None:
    """Loads data, builds or restores the state, and runs the steps from `start` to the end."""
    images = config.data.load(config.model.image_size, config.model.channels)
    check_labels(images, config.model.num_classes)
    total, steps_per_epoch = config.total_steps(len(images)), config.steps_per_epoch(len(images))
    if start >= total:
        print(f"{run.workdir} is at step {start} of {total} already: raise --training.steps to go on")
        return
    upload = export.publisher(run.push, run.private, config)
    key_init, key_train = training.training_keys(config.training.seed)
    tx = optimizer.make_optimizer(config, len(images))
    params = config.model.init(key_init) if start else first_params(config, key_init)
    state = parallel.replicate(jax.jit(training.init_state, static_argnums=(1, 2))(params, tx, config.ema))
    loss = training.model_loss(config.model, config.objective, config.training.dtype)
    train_step = parallel.spread(partial(training.make_train_step, loss, tx, config.ema), config.training.parallel)

    workdir.begin(run.workdir, config, start, run.overwrite)
    print(f"images    {len(images):,}, {steps_per_epoch} steps an epoch, {total - start} steps from {start} to {total}")
    if run.preview:
        preview(config, images, run.workdir)
    save_every = in_steps(config.checkpoint.every, config.checkpoint.every_epochs, steps_per_epoch)
    rows, keep = jnp.arange(config.training.batch_size), config.checkpoint
    if start:
        found = restore(run.workdir, start, saved(state))
        state = parallel.replicate(state._replace(step=jnp.asarray(start, jnp.int32), **found))
    go_on = keep.on_failure == "go_on"
    checkpoints = Checkpoints(run.workdir, keep_last=keep.keep_last, keep_every=keep.keep_every, go_on=go_on)
    with Interruption() as stop, checkpoints, Reporter(config, images, run.workdir, start) as reporter:
        for step, batch in enumerate(batches(config, images, start, total), start):
            batch["key"] = training.example_keys(key_train, step, rows)
            state, metrics = training.by_micro_batches(train_step, state, batch, config.training.accumulation)
            done, stopping = step + 1, stop.signal
            workdir.snapshot(config.ema, run.workdir, done, total, state.ema_params)
            if stopping or done == total or (save_every and done % save_every == 0):
                checkpoints.save(done, saved(state), to_json(config))
                upload(TrainedRun(run.workdir, done, config), state.ema_params["ema"])
            reporter.after_step(done, metrics, state)
            if reporter.watch.in_a_row >= config.training.max_skipped:
                parts = workdir.go_back(config, run.workdir, done, saved(state), reporter.watch)
                state = parallel.replicate(state._replace(**parts))
            if stopping and done < total:
                break
    if done < total:
        print(f"stopped: step {done} of {total} is saved in {run.workdir}; the same command goes on")
        raise SystemExit(stop.status)
    print(f"done: step {total}, in {run.workdir}; draw samples with: python sample.py --ckpt {run.workdir}")


def saved(state) -> dict:
    """What a checkpoint holds; the step is its name."""
    return {"params": state.params, "ema_params": state.ema_params, "opt_state": state.opt_state}


def batches(config: Config, images, start: int, stop: int):
    """The global batches of steps start..stop-1, made ahead by worker threads."""
    seed, size, flip = config.training.seed, config.training.batch_size, config.data.flip
    return stream(lambda step: batch_at(images, seed, step, size, flip=flip, low=config.objective.low), start, stop)


if __name__ == "__main__":
    with command_line.one_line_errors("--debug" in sys.argv):
        main(sys.argv[1:])
