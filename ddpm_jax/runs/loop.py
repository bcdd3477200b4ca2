"""Run training: load data and state, then step, save and report until the end or a stop signal."""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ddpm_jax.config import Config, RunConfig, config_to_json
from ddpm_jax.data import Batch, ImageSet, check_classes, check_values
from ddpm_jax.data.batches import batch_at, stream
from ddpm_jax.data.conditions import condition_values_of
from ddpm_jax.data.scaled_images import warn_of_few_levels
from ddpm_jax.data.values import LEVELS
from ddpm_jax.devices import hosts, memory, parallel
from ddpm_jax.devices.signals import StopSignal
from ddpm_jax.errors import check
from ddpm_jax.latent_config import LatentConfig
from ddpm_jax.runs import checkpoints, directory, saved_steps, weights
from ddpm_jax.runs.checkpoints import CheckpointWriter
from ddpm_jax.runs.directory import AUTOENCODER
from ddpm_jax.runs.evaluation import Evaluator, prepared_evaluator
from ddpm_jax.runs.initial_weights import (
    Base,
    first_trained,
    load_base,
    network_params,
    warn_of_other_values,
)
from ddpm_jax.runs.latents import Latents, save_latents
from ddpm_jax.runs.progress import Reporter, print_values, warn_of_short_run
from ddpm_jax.runs.tasks import saved_scales, task_of
from ddpm_jax.settings_json import to_json
from ddpm_jax.training.lora import lora_loss
from ddpm_jax.training.opt_state import get_field
from ddpm_jax.training.optimizer import count_of_updates
from ddpm_jax.training.step import (
    TrainState,
    example_keys,
    init_state,
    make_train_step,
    micro_batches,
    step_by_micro_batches,
    training_keys,
)

OnSave = Callable[[int, TrainState], None]


def train(
    config: RunConfig,
    folder: Path,
    start: int,
    *,
    overwritten: Path | None = None,
    with_preview: bool = False,
    on_start: Callable[[], None] = lambda: None,
    on_save: OnSave | None = None,
) -> int:
    """Train from step `start` to the end. Return 0, or the exit status of the stop signal.

    `overwritten` is a directory whose run is removed when training starts: the folder, or one that
    holds it. `on_start()` is called if any step is left to run, after the data are loaded and
    before anything is written. `on_save(step, state)` is called on every host when a step is saved,
    or has failed to be; training waits for both. On a CPU the process keeps the memory that a step
    frees (`memory.keep_freed`), also after the end.
    Raise ValueError or OSError for a user's mistake. A mistake found before training starts leaves
    the folder as it was.
    """
    check(
        hosts.count() == 1 or config.checkpoint.on_failure == "stop",
        "Several hosts cannot continue after a failed save: set --checkpoint.on-failure stop.",
    )
    task = task_of(config)
    images = load(config, folder, start)
    total = config.total_steps(len(images))
    per_epoch = config.steps_per_epoch(len(images))
    hosts.assert_identical([directory.comparable_config(config), describe_data(images), start])
    if start:
        check_data(folder, start, images)
    if start >= total:
        remedy = ": raise --training.steps to continue" if isinstance(config, Config) else ""
        print(f"{folder} is at step {start} of {total} already{remedy}")
        return 0
    task.check(config)
    on_start()
    length = f"{per_epoch} steps an epoch, {total - start} steps from {start} to {total}"
    print(f"images    {len(images):,}, {length}")
    print_values(images)
    warn_of_short_run(config, len(images))
    if not start:
        warn_of_other_values(config, images)
    with memory.explain_oom(*memory_advice(config, start)):
        evaluator = prepared_evaluator(config, images)
        tx = config.make_optimizer(len(images))
        base = load_base(config, folder, start)
        state = resumed_state(config, tx, folder, start) if start else first_state(config, tx)
        train_step = parallel_train_step(config, tx, base)
        check_memory(config, images, train_step, state)
        if hosts.is_primary():
            directory.prepare(folder, config, start, overwritten)
            if isinstance(config, LatentConfig) and isinstance(images, Latents):
                save_latents(config, folder, images)
            if with_preview:
                task.preview(config, images, folder)
        hosts.barrier("directory")
        done, signal = run_steps(
            config, folder, images, train_step, state, on_save, base, evaluator
        )
    if done < total:
        resumes = "the same command without --overwrite resumes it"
        print(f"stopped: step {done} of {total} is saved in {folder}; {resumes}")
        return 128 + signal
    print(f"done: step {total}, in {folder}")
    return 0


def load(config: RunConfig, folder: Path, step: int) -> ImageSet:
    """Load what the steps of a run after `step` are trained on: images, or their latents.

    The primary host loads the images before the others, so that it alone prepares a data set on a
    shared disk. All hosts prepare them together, because that may restore a checkpoint.
    """
    with memory.explain_oom("the images of the data set", "use smaller or fewer images"):
        scales = saved_scales(config, folder, step)
        images = hosts.primary_first("data", partial(config.load_images, scales))
        if not step:
            remedy = "use --data arrays with --data.scaling range"
            warn_of_few_levels(images, config.data.describe(), remedy)
        return task_of(config).prepare(config, folder, step, images)


def describe_data(images: ImageSet, base: Base | None = None) -> dict[str, Any]:
    """The record of what a step is trained on, as JSON: its data, and hashes of frozen weights."""
    record: dict[str, Any] = {"images": len(images), "classes": images.classes}
    if images.values != LEVELS:
        record |= {"values": to_json(images.values)}
    if condition_values_of(images) != LEVELS:
        record |= {"condition_values": to_json(condition_values_of(images))}
    if isinstance(images, Latents):
        record |= {"scaling_factor": images.scaling_factor, AUTOENCODER: images.autoencoder.hash}
    return record if base is None else record | {"base": base.hash}


def check_data(folder: Path, step: int, images: ImageSet) -> None:
    """Check that a data set still fits the checkpoint of `step`.

    Raise ValueError if a class has another name now, or if values are scaled in another way. Warn
    on stderr if the number of images has changed.
    """
    saved = saved_steps.data_at(folder, step)
    if "classes" in saved:
        remedy = "restore their names, choose another --workdir, or start afresh with --overwrite"
        check_classes(images.classes, saved["classes"], remedy)
    remedy = "restore it, choose another --workdir, or start afresh with --overwrite"
    check_values(images.values, saved_steps.values_of(saved), remedy)
    before = saved.get("images", len(images))
    if before != len(images):
        print(
            f"The data set had {before:,} images so far and has {len(images):,} now: "
            "the batches change.",
            file=sys.stderr,
        )


def check_memory(
    config: RunConfig, images: ImageSet, train_step: parallel.ParallelStep, state: TrainState
) -> None:
    """Compile the step. Raise MemoryError if it needs more memory than the host has left.

    On a CPU, memory that is freed later stays with the process, for the next step.
    """
    start = int(state.step)
    batch = next(batches(config, images, start, start + 1))
    micro_batch = next(micro_batches(batch, config.training.accumulation))
    # Before, so that compiling needs no more than what initialisation freed.
    memory.release()
    needed = train_step.host_memory(state, micro_batch)
    memory.release()
    if jax.default_backend() == "cpu":
        memory.keep_freed()
    memory.check_fits(needed)


def memory_advice(config: RunConfig, start: int) -> tuple[str, str]:
    """Describe the memory load of a training step, and how to reduce it.

    A run that resumes at a step `start` keeps its batches and its dtype.
    """
    settings = config.training
    flags = f"{config.FLAGS}training"
    height, width, channels = config.model.image_shape
    description = (
        f"micro-batches of {settings.micro_batch_size} images of {height}x{width}x{channels} "
        f"in {settings.dtype}"
    )
    if start:
        return description, "end other programs, or split the state by --parallel.fsdp"
    remedy = (
        f"raise {flags}.accumulation (now {settings.accumulation}), lower "
        f"{flags}.batch-size (now {settings.batch_size}), try {flags}.dtype bfloat16, "
        "or split the state by --parallel.fsdp"
    )
    return description, remedy


def first_state(config: RunConfig, tx: optax.GradientTransformation) -> TrainState:
    """Initialise the state before the first step, on the devices."""
    key, _ = training_keys(config.training.seed)
    params = parallel.put_state(first_trained(config, key), config.parallel.fsdp)
    init = partial(init_state, tx=tx, ema=config.ema)
    shardings = parallel.state_shardings(jax.eval_shape(init, params), config.parallel.fsdp)
    return jax.jit(init, out_shardings=shardings)(params)


def resumed_state(
    config: RunConfig, tx: optax.GradientTransformation, folder: Path, step: int
) -> TrainState:
    """Restore the state of a saved step to the devices."""
    init = partial(init_state, tx=tx, ema=config.ema)
    shapes = jax.eval_shape(init, config.lora.trained_shapes(config.model.shapes()))
    template = parallel.state_template(shapes, config.parallel.fsdp)
    step_array = parallel.put_state(jnp.asarray(step, jnp.int32), config.parallel.fsdp)
    items = checkpoints.restore(folder, step, checkpoint_items(template))
    return template._replace(step=step_array, **items)


def checkpoint_items(state: TrainState) -> dict:
    """The parts of a state that a checkpoint holds. The step is the checkpoint's name."""
    return {"params": state.params, "ema_params": state.ema_params, "opt_state": state.opt_state}


def run_steps(
    config: RunConfig,
    folder: Path,
    images: ImageSet,
    train_step: Callable,
    state: TrainState,
    on_save: OnSave | None = None,
    base: Base | None = None,
    evaluator: Evaluator | None = None,
) -> tuple[int, int]:
    """Run the steps that follow `state.step`; save, report and roll back as configured.

    Return the last step, which is saved, and the signal that stopped the run, or 0.
    """
    start = int(state.step)
    total = config.total_steps(len(images))
    settings = config.training
    save_every = config.steps_between_saves(len(images))
    data = describe_data(images, base)
    agreed_signal = hosts.DelayedMax()
    done = start
    signal = 0
    writer = CheckpointWriter(folder, config.checkpoint)
    skipped = int(get_field(state.opt_state, "skipped", 0))
    to_network = partial(network_params, config, base)
    reporter = Reporter(config, images, folder, start, to_network, skipped)
    reporter.count_from(start, count_of_updates(state.opt_state))
    monitor = reporter.monitor
    with StopSignal() as stop, writer, reporter:
        for done, batch in enumerate(batches(config, images, start, total), start + 1):
            state, metrics = step_by_micro_batches(train_step, state, batch, settings.accumulation)
            if config.checkpoint.wait:
                writer.wait()
            signal = agreed_signal(stop.signal)
            reporter.after_step(done, metrics)
            is_measured = not signal and evaluator is not None and evaluator.is_due(done, total)
            due = signal or done == total or (save_every and done % save_every == 0) or is_measured
            if due:
                # Saving blocks on this step anyway, so read its metrics now. They are written
                # before it is saved, because a resumed run does not compute them again.
                reporter.write_until(done)
            out_of_patience = reporter.is_out_of_patience(done)
            is_skipping = monitor.in_a_row > 0
            if out_of_patience:
                writer.wait()
                state = rolled_back(config, folder, done, state, reporter)
            else:
                weights.save_snapshot_if_due(config.ema, writer, done, total, state.ema_params)
            if due or out_of_patience:
                items = checkpoint_items(state)
                # Keep a checkpoint to roll back to while updates are skipped.
                last_finite_step = monitor.last_finite_step if is_skipping else 0
                record = data
                if evaluator is not None and is_measured:
                    record = data | reporter.evaluate(done, state, evaluator)
                writer.save(done, items, config_to_json(config), record, last_finite_step)
                if on_save is not None:
                    writer.wait()
                    on_save(done, state)
            reporter.draw(done, state)
            if signal:
                reporter.skip_final_plot = True
                break
    return done, signal


def rolled_back(
    config: RunConfig, folder: Path, done: int, state: TrainState, reporter: Reporter
) -> TrainState:
    """The state of an earlier checkpoint, as `directory.rollback` restores it at step `done`."""
    template = checkpoint_items(state)
    state = state._replace(**directory.rollback(config, folder, done, template, reporter.monitor))
    reporter.count_from(done, count_of_updates(state.opt_state))
    return state


def parallel_train_step(
    config: RunConfig, tx: optax.GradientTransformation, base: Base | None = None
) -> parallel.ParallelStep:
    """The training step of a recipe on all devices."""
    loss = task_of(config).loss(config)
    if base is not None:
        loss = lora_loss(loss, config.lora.scale)
    objective = config.objective if isinstance(config, Config) else None
    make_step = partial(make_train_step, loss, tx, config.ema, objective=objective)
    frozen = (base.params,) if base else ()
    return parallel.parallelize(make_step, config.parallel.route, config.parallel.fsdp, frozen)


def batches(config: RunConfig, images: ImageSet, start: int, stop: int) -> Iterator[dict]:
    """Yield this host's rows of the global batches of steps start..stop-1, with their keys.

    Worker threads prepare batches ahead.
    """
    settings = config.training
    _, key = training_keys(settings.seed)
    rows = parallel.rows_of_host(settings.batch_size, settings.accumulation)
    rows_on_device = jnp.asarray(rows)

    def batch(step: int) -> Batch:
        return batch_at(
            images, settings.seed, step, settings.batch_size, rows=rows, flip=config.data.flip
        )

    for step, step_batch in enumerate(stream(batch, start, stop), start):
        yield step_batch | {"key": example_keys(key, step, rows_on_device)}
