"""Training: data -> state -> steps, with saves and reports, to the end or to a request to stop."""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from ddpm_jax.config import Config, cadence_in_steps, config_to_json, to_json
from ddpm_jax.data import Batch, ImageSet, check_labels
from ddpm_jax.data.batches import batch_at, stream
from ddpm_jax.devices import hosts, memory, parallel
from ddpm_jax.devices.signals import StopSignal
from ddpm_jax.errors import check
from ddpm_jax.generation.sampling import build_sampler
from ddpm_jax.runs import checkpoints, directory, weights
from ddpm_jax.runs import steps as saved_steps
from ddpm_jax.runs.checkpoints import CheckpointWriter
from ddpm_jax.runs.initial_weights import first_params
from ddpm_jax.runs.progress import Reporter, preview
from ddpm_jax.training.step import (
    TrainState,
    example_keys,
    init_state,
    make_train_step,
    micro_batches,
    model_loss,
    step_by_micro_batches,
    training_keys,
)

OnSave = Callable[[int, TrainState], None]


def ignore_save(step: int, state: TrainState) -> None:
    """Do nothing at a save."""


PLACES = ("path", "data_dir")


def train(
    config: Config,
    folder: Path,
    start: int,
    *,
    overwrite: bool = False,
    previewed: bool = False,
    on_start: Callable[[], None] = lambda: None,
    on_save: OnSave = ignore_save,
) -> int:
    """Train from step `start` to the end; returns 0, or the exit status of the signal that stopped it.

    `on_start()` is called once data and steps are found to be there, before anything is written. `on_save(step, state)`
    is called on every host after each save has begun. Raises ValueError or OSError for what the user can mend; what was
    in the folder is still there then.
    """
    check(
        hosts.count() == 1 or config.checkpoint.on_failure == "stop",
        "on several hosts --checkpoint.on-failure stop",
    )
    images = load(config)
    total, per_epoch = config.total_steps(len(images)), config.steps_per_epoch(len(images))
    hosts.assert_identical([comparable_config(config), len(images), start])
    if start >= total:
        print(f"{folder} is at step {start} of {total} already: raise --training.steps to go on")
        return 0
    build_sampler(
        config.objective, config.sampling
    )  # a file that it names is opened before, not after hours
    on_start()
    print(
        f"images    {len(images):,}, {per_epoch} steps an epoch, {total - start} steps from {start} to {total}"
    )
    with memory.explain_oom(*memory_advice(config)):
        tx = config.make_optimizer(len(images))
        state = (
            resumed_state(config, tx, folder, start, len(images))
            if start
            else first_state(config, tx)
        )
        train_step = step_over_devices(config, tx)
        check_memory(config, images, train_step, state)
        if hosts.is_primary():
            directory.prepare(folder, config, start, overwrite)
            if previewed:
                preview(config, images, folder)
        hosts.barrier("directory")
        done, signal = run_steps(config, folder, images, train_step, state, on_save)
    if done < total:
        print(f"stopped: step {done} of {total} is saved in {folder}; the same command goes on")
        return 128 + signal
    print(f"done: step {total}, in {folder}; draw samples with: python sample.py --ckpt {folder}")
    return 0


def comparable_config(config: Config) -> dict:
    """The recipe but for where its data lie."""
    recipe = to_json(config)
    return recipe | {
        "data": {name: recipe["data"][name] for name in recipe["data"] if name not in PLACES}
    }


def load(config: Config) -> ImageSet:
    """The images of a recipe; where they have to be prepared first, one host does it for those that share its disk."""
    with memory.explain_oom("the images of the data set", "take smaller or fewer ones"):
        if not hosts.is_primary():
            hosts.barrier("data")
        images = config.data.load(config.model.image_size, config.model.channels)
        if hosts.is_primary():
            hosts.barrier("data")
    check_labels(images, config.model.num_classes)
    return images


def check_memory(
    config: Config, images: ImageSet, train_step: parallel.ParallelStep, state: TrainState
) -> None:
    """Compiles the step; raises MemoryError where the host has less left than it needs."""
    start = int(state.step)
    batch = next(batches(config, images, start, start + 1))
    memory.check_fits(
        train_step.host_memory(state, next(micro_batches(batch, config.training.accumulation)))
    )


def memory_advice(config: Config) -> tuple[str, str]:
    """What a step's memory is for, and how to need less."""
    settings, model = config.training, config.model
    height, width, channels = model.image_shape
    return (
        f"micro-batches of {settings.micro_batch_size} pictures of {height}x{width}x{channels} in {settings.dtype}",
        f"raise --training.accumulation (now {settings.accumulation}), lower --training.batch-size (now "
        f"{settings.batch_size}), try --training.dtype bfloat16, or split the state by --parallel.fsdp",
    )


def first_state(config: Config, tx: optax.GradientTransformation) -> TrainState:
    """The state before the first step, on the devices."""
    key, _ = training_keys(config.training.seed)
    params = parallel.put_state(first_params(config, key), config.parallel.fsdp)
    init = partial(init_state, tx=tx, ema=config.ema)
    lie = parallel.state_shardings(jax.eval_shape(init, params), config.parallel.fsdp)
    return jax.jit(init, out_shardings=lie)(params)


def resumed_state(
    config: Config, tx: optax.GradientTransformation, folder: Path, step: int, images: int
) -> TrainState:
    """The state that was saved at a step, on the devices; a change of the number of images is told."""
    before = saved_steps.num_images_at(folder, step)
    if before not in (None, images):
        print(
            f"trained on {before:,} images so far, and on {images:,} from here: batches differ",
            file=sys.stderr,
        )
    init = lambda key: init_state(config.model.init(key), tx, config.ema)  # noqa: E731
    like = parallel.state_template(jax.eval_shape(init, jax.random.key(0)), config.parallel.fsdp)
    at = parallel.put_state(jnp.asarray(step, jnp.int32), config.parallel.fsdp)
    return like._replace(step=at, **checkpoints.restore(folder, step, parts_of(like)))


def parts_of(state: TrainState) -> dict:
    """What a checkpoint holds; the step is its name."""
    return {"params": state.params, "ema_params": state.ema_params, "opt_state": state.opt_state}


def run_steps(
    config: Config,
    folder: Path,
    images: ImageSet,
    train_step: Callable,
    state: TrainState,
    on_save: OnSave = ignore_save,
) -> tuple[int, int]:
    """The last step done, which is saved, and the signal that stopped it, 0 at the end."""
    start, total = int(state.step), config.total_steps(len(images))
    settings, keep = config.training, config.checkpoint
    save_every = cadence_in_steps(
        keep.every, keep.every_epochs, config.steps_per_epoch(len(images))
    )
    agreed, done, signal = hosts.DelayedMax(), start, 0
    writer, reporter = CheckpointWriter(folder, keep), Reporter(config, images, folder, start)
    monitor = reporter.monitor
    with StopSignal() as stop, writer, reporter:
        for done, batch in enumerate(batches(config, images, start, total), start + 1):
            state, metrics = step_by_micro_batches(train_step, state, batch, settings.accumulation)
            if keep.wait:
                writer.wait()
            signal = agreed(stop.signal)
            reporter.after_step(done, metrics)
            due = signal or done == total or (save_every and done % save_every == 0)
            if due:
                reporter.report_until(done)  # to save waits for the step in any case
            troubled, lost = monitor.in_a_row > 0, monitor.in_a_row >= settings.skip_patience
            if lost:
                writer.wait()
                state = state._replace(
                    **directory.rollback(config, folder, done, parts_of(state), monitor)
                )
            weights.snapshot(config.ema, writer, done, total, state.ema_params)
            if due or lost:
                good = monitor.last_finite_step if troubled else 0
                writer.save(done, parts_of(state), config_to_json(config), len(images), good)
                on_save(done, state)
            reporter.draw(done, state)
            if signal:
                reporter.skip_final_plot = True
                break
    return done, signal


def step_over_devices(config: Config, tx: optax.GradientTransformation) -> parallel.ParallelStep:
    """The training step of a recipe on all devices."""
    loss = model_loss(config.model, config.objective, config.training.dtype)
    make_step = partial(make_train_step, loss, tx, config.ema)
    return parallel.parallelize(make_step, config.parallel.route, config.parallel.fsdp)


def batches(config: Config, images: ImageSet, start: int, stop: int) -> Iterator[dict]:
    """This host's rows of the global batches of steps start..stop-1, made ahead by worker threads, and their keys."""
    settings, size = config.training, config.training.batch_size
    _, key = training_keys(settings.seed)
    rows = parallel.rows_of_host(size, settings.accumulation)
    on_device = jnp.asarray(rows)

    def batch(step: int) -> Batch:
        return batch_at(images, settings.seed, step, size, rows=rows, flip=config.data.flip)

    for step, images_of_step in enumerate(stream(batch, start, stop), start):
        yield images_of_step | {"key": example_keys(key, step, on_device)}
