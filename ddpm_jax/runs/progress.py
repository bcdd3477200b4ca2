"""Report on training: banner, progress bar, metrics, epoch lines, sample grids."""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from ddpm_jax.config import RunConfig, cadence_in_steps, multiple_of
from ddpm_jax.data import ImageSet, describe_classes
from ddpm_jax.data.conditions import condition_values_of
from ddpm_jax.data.pixels import describe_colours
from ddpm_jax.data.values import LEVELS
from ddpm_jax.devices import hosts, parallel
from ddpm_jax.errors import one_line
from ddpm_jax.figures import image_grids, plots
from ddpm_jax.latent_config import LatentConfig
from ddpm_jax.models import Params
from ddpm_jax.runs.evaluation import Evaluator
from ddpm_jax.runs.metrics import NullLog, RunLog, warn_on_write_error
from ddpm_jax.runs.sources import lora_base
from ddpm_jax.runs.tasks import task_of
from ddpm_jax.runs.weights import DEFAULT_WEIGHTS
from ddpm_jax.settings_json import to_json
from ddpm_jax.training.loss_bands import mean_by_band
from ddpm_jax.training.optimizer import learning_rate
from ddpm_jax.training.step import TrainState
from ddpm_jax.training.update_monitor import UpdateMonitor

CURVE_SECONDS = 30
"""Seconds between updates of loss.png."""
SHORT_RUN = 1000
"""Number of steps below which a run says that it is short."""


def banner(config: RunConfig, workdir: Path) -> str:
    """The resolved recipe, the network's parts with their parameter counts, and the devices.

    Loads no data.
    """
    training = config.training
    if training.steps is not None:
        length = f"{training.steps} steps"
    else:
        length = f"{training.epochs} epochs"
    batch = f"batches of {training.batch_size} in {training.accumulation} micro-batches"
    model = f"{type(config.model).__name__}, {config.model.parameter_count()} parameters"
    flags = [f"  {flag} {value}".rstrip() for flag, value in settings_as_flags(to_json(config))]
    rows = {
        "data": config.data.describe(),
        "model": model,
        **_describe_pictures(config),
        **_describe_lora(config),
        "devices": f"{parallel.describe_devices()}, by {config.parallel.description}",
        "length": f"{length}, {batch}",
        "workdir": str(workdir),
    }
    facts = [f"{name:<10}{value}" for name, value in rows.items()]
    return "\n".join(["settings", *flags, "", "parameters", config.model.summary(), "", *facts])


def _describe_pictures(config: RunConfig) -> dict[str, str]:
    """The colours of pictures of images that are neither grey nor RGB."""
    colours = describe_colours(config.model.channels, config.log.channels)
    return {} if colours is None or isinstance(config, LatentConfig) else {"pictures": colours}


def _describe_lora(config: RunConfig) -> dict[str, str]:
    """The size of the LoRA and the name of its base, if the recipe trains one."""
    base = lora_base(config)
    if base is None:
        return {}
    pairs = config.lora.trained_shapes(config.model.shapes())
    count = sum(leaf.size for leaf in jax.tree.leaves(pairs))
    layers = f"rank {config.lora.rank} in {len(pairs)} layers, {count} parameters"
    return {"lora": f"{layers}, on {base}"}


def print_values(images: ImageSet) -> None:
    """Print the names of the classes, and the unit of values that are no 8-bit levels."""
    if images.classes is not None:
        print(f"classes   {describe_classes(images.classes)}")
    if images.values != LEVELS:
        print(f"values    {images.values.describe()}")
    if condition_values_of(images) != LEVELS:
        print(f"condition {condition_values_of(images).describe()}")


def warn_of_short_run(config: RunConfig, num_images: int) -> None:
    """Print to stderr if the run is shorter than `SHORT_RUN` steps."""
    total = config.total_steps(num_images)
    if total >= SHORT_RUN:
        return
    settings = config.training
    flags = f"{config.FLAGS}training"
    if settings.steps is not None:
        remedy = f"raise {flags}.steps"
    else:
        remedy = f"set {flags}.steps instead of epochs, or lower {flags}.batch-size"
    print(
        f"The run has only {total} steps ({num_images:,} images in batches of "
        f"{settings.batch_size} are {config.steps_per_epoch(num_images)} an epoch), "
        f"and most networks need thousands: {remedy}.",
        file=sys.stderr,
    )


def settings_as_flags(values: Any, path: str = "-") -> list[tuple[str, str]]:
    """Settings as command-line flags and values, such as ("--training.batch-size", "128").

    They are quoted for a shell. A flag of True or False has no value. --init-from stands for the
    network that it determines.
    """
    if path.endswith(".init-from"):
        return [] if values is None else [("--init-from", shlex.quote(values))]
    if isinstance(values, list):
        return [(path, shlex.join(map(str, values)))]
    if isinstance(values, bool):
        part, _, name = path.rpartition(".")
        return [(path if values else f"{part}.no-{name}", "")]
    if not isinstance(values, dict):
        return [(path, shlex.quote(str(values)))]
    joint = "." if path != "-" else "-"
    flags: list[tuple[str, str]] = []
    for name, value in values.items():
        flag = f"{path}{joint}{name.replace('_', '-')}"
        if name == "options":
            pairs = [str(word) for pair in value.items() for word in pair]
            flags += [(flag, shlex.join(pairs))] if pairs else []
        elif name != "kind":
            flags += settings_as_flags(value, flag)
        elif path in ("--data", "--model"):
            flags.append((path, value))
    if path == "-" and "--init-from" in dict(flags):
        flags = [(flag, value) for flag, value in flags if flag != "--model"]
    return flags


class Reporter:
    """Report on every training step. The loop calls `after_step` and `draw` once per step.

    Values on the devices are read one log interval late, so that reading them does not block the
    step in flight. `monitor` counts the skipped updates among the steps read so far.
    `skip_final_plot` leaves out the last loss plot, because the resumed run draws it again.
    `to_network` makes the parameters of the network from what is trained. `skipped` counts the
    updates that were skipped before `start`.
    """

    def __init__(
        self,
        config: RunConfig,
        images: ImageSet,
        workdir: Path,
        start: int,
        to_network: Callable[[Params], Params] = lambda trained: trained,
        skipped: int = 0,
    ):
        self._config = config
        self._images = images
        self._workdir = workdir
        self._to_network = to_network
        self._total = config.total_steps(len(images))
        self._steps_per_epoch = config.steps_per_epoch(len(images))
        self._rate = learning_rate(config.optimizer, self._total, self._steps_per_epoch)
        self._sample_every = cadence_in_steps(
            config.log.samples_every,
            config.log.samples_every_epochs,
            self._steps_per_epoch,
            config.log.every,
        )
        # One line for several epochs that are shorter than the log's interval.
        self._steps_per_line = multiple_of(self._steps_per_epoch, config.log.every)
        self._log = RunLog(workdir, start) if hosts.is_primary() else NullLog()
        options = {"unit": "step", "dynamic_ncols": True, "disable": not hosts.is_primary()}
        self._bar = tqdm(total=self._total, initial=start, **options)
        self._waiting: list[tuple[int, dict, list[jax.Array]]] = []
        self.monitor = UpdateMonitor(start, skipped)
        self._lost = 0
        self.skip_final_plot = False
        self._epoch_losses: list[jax.Array] = []
        self._bands: list[jax.Array] = []
        now = time.perf_counter()
        self._epoch_began = now
        self._curve_drawn = now

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._write_waiting()
        finally:
            if not self.skip_final_plot:
                self._log.curve()
            self._log.close()
            self._bar.close()

    def after_step(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Record a step's metrics, and write log and epoch lines when they are due."""
        self._bar.update()
        self.monitor.add(step, metrics["loss"], metrics["grad_norm"])
        self._epoch_losses.append(metrics["loss"])
        metrics = dict(metrics)
        if (bands := metrics.pop("loss_bands", None)) is not None:
            self._bands.append(bands)
        ends_epoch = step % self._steps_per_line == 0
        if step % self._config.log.every == 0 or step == self._total or ends_epoch:
            self._write_waiting()
            self._waiting.append((step, metrics, self._bands))
            self._bands = []
        if ends_epoch or step == self._total:
            self._end_epoch(step)

    def draw(self, step: int, state: TrainState) -> None:
        """Draw and save a grid of samples, with the averaged parameters, if one is due.

        Training continues if that fails.
        """
        due = step == self._total or (self._sample_every and step % self._sample_every == 0)
        if self._config.log.samples and due:
            params = self._gather(state)
            if hosts.is_primary():
                with self._aside(f"The samples of step {step} were not drawn"):
                    self._draw_grid(step, params)

    def _gather(self, state: TrainState) -> Params:
        """The averaged parameters of the network. All hosts call this, the primary one draws."""
        return parallel.gather_to_host(self._to_network(state.ema_params[DEFAULT_WEIGHTS]))

    def evaluate(self, step: int, state: TrainState, evaluator: Evaluator) -> dict[str, Any]:
        """Measure samples of the averaged parameters and log them. Return the checkpoint's record.

        It is empty on all hosts but the primary one, and if measuring fails: the step is saved
        whatever happens.
        """
        params = self._gather(state)
        if not hosts.is_primary():
            return {}
        result = None
        with self._aside(f"Step {step} was not measured"):
            result = evaluator(params)
        if result is None:
            return {}
        self._write_waiting()
        self._log.scalars(step, result._asdict())
        distance = f"KID {result.kid:.5f} +- {result.kid_error:.5f}"
        self._bar.write(f"step {step}: {distance}, Frechet distance {result.frechet:.4f}")
        return {"evaluation": evaluator.record(result)}

    def report_until(self, step: int) -> None:
        """Wait for the steps up to this one. Print their skipped updates and gradient spikes."""
        for line in self.monitor.report_until(step):
            self._bar.write(line)

    def write_until(self, step: int) -> None:
        """Report the steps up to this one, and write their metrics."""
        self.report_until(step)
        self._write_waiting()

    def is_out_of_patience(self, step: int) -> bool:
        """Whether the last `skip_patience` updates up to this step were all skipped."""
        patience = self._config.training.skip_patience
        if self.monitor.in_a_row < patience:
            return False
        # The steps that were not read yet may be finite again.
        self.write_until(step)
        return self.monitor.in_a_row >= patience

    def count_from(self, step: int, updates: int) -> None:
        """Note that the weights after a step have received this number of updates."""
        self._lost = step - updates - self.monitor.skipped

    def _rate_at(self, step: int) -> Any:
        """The learning rate of a step. Updates that were skipped or undone do not count."""
        return self._rate(max(step - 1 - self.monitor.skipped - self._lost, 0))

    def _write_waiting(self, extra: dict[str, float] | None = None) -> None:
        """Write the metrics that wait, and redraw the loss curve every CURVE_SECONDS.

        `extra` holds further values for the record.
        """
        for step, metrics, bands in self._waiting:
            self.report_until(step)
            facts = {"learning_rate": self._rate_at(step), "skipped": self.monitor.skipped}
            values: dict[str, Any] = {"loss": metrics["loss"]} | metrics | facts | (extra or {})
            if bands:
                values["loss_bands"] = mean_by_band(np.stack(jax.device_get(bands)))
            self._log.scalars(step, values)
            self._bar.set_postfix(loss=f"{float(values['loss']):.4f}")
        self._waiting = []
        if time.perf_counter() - self._curve_drawn > CURVE_SECONDS:
            self._log.curve()
            self._curve_drawn = time.perf_counter()

    def _end_epoch(self, step: int) -> None:
        """Print the line of an epoch, and log its mean loss if this process ran all its steps."""
        epoch = -(-step // self._steps_per_epoch)
        epochs = -(-self._total // self._steps_per_epoch)
        num_steps = len(self._epoch_losses)
        losses = np.asarray(jax.device_get(self._epoch_losses))
        finite_losses = losses[np.isfinite(losses)]
        mean = float(np.mean(finite_losses)) if len(finite_losses) else math.nan
        seconds = time.perf_counter() - self._epoch_began
        images_per_second = num_steps * self._config.training.batch_size / seconds
        # An epoch is incomplete if the run resumed or ends within it.
        is_complete = num_steps == self._steps_per_line
        part = "" if num_steps == self._steps_per_epoch else f" of {num_steps} steps"
        self._bar.write(
            f"epoch {epoch}/{epochs}: mean loss{part} {mean:.5f}, "
            f"{images_per_second:.0f} images/s, lr {float(self._rate_at(step)):.6f}"
        )
        extra = {"epoch": float(epoch), "epoch_loss": mean} if is_complete else None
        self._write_waiting(extra)
        self._epoch_losses = []
        self._epoch_began = time.perf_counter()

    @contextmanager
    def _aside(self, failure: str) -> Iterator[None]:
        """Keep the block's time out of the images per second, and its failure from the training."""
        began = time.perf_counter()
        try:
            yield
        # Out of memory, samples that are not finite, ...
        except Exception as error:
            self._bar.write(f"{failure} ({one_line(error, 200)}).", file=sys.stderr)
        self._epoch_began += time.perf_counter() - began

    def _draw_grid(self, step: int, params: Params) -> None:
        folder = self._workdir / "samples"
        task = task_of(self._config)
        grid = task.grid(self._config, params, self._images)
        with warn_on_write_error("a grid of samples"):
            image_grids.save_images(grid, folder / f"{step:08d}.png")
        if task.predictions is not None:
            rows = task.predictions(self._config, params, self._images)
            with warn_on_write_error("a plot of predictions"):
                plots.labelled_rows(rows, folder / f"{step:08d}_predictions.png")
        self._log.image(step, "samples", image_grids.image_grid(grid))
