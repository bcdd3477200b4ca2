"""What a run tells while it trains: banner, progress bar, metrics, a line an epoch, sample grids, previews."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from ddpm_jax.config import Config, cadence_in_steps, to_json
from ddpm_jax.data import ImageSet, pixels
from ddpm_jax.data.batches import batch_at
from ddpm_jax.data.pixels import to_floats
from ddpm_jax.devices import hosts, parallel
from ddpm_jax.figures import image_grids, plots
from ddpm_jax.generation.generate import generate, guided_network
from ddpm_jax.generation.sampling import step_count, with_learned_variance
from ddpm_jax.generation.walk import noise_ladder, predict_x0
from ddpm_jax.models import Params
from ddpm_jax.runs.metrics import NullLog, RunLog, warn_on_write_error
from ddpm_jax.samplers import sample_keys
from ddpm_jax.training.optimizer import learning_rate
from ddpm_jax.training.step import TrainState
from ddpm_jax.training.update_monitor import UpdateMonitor

LEVELS = 8
CURVE_SECONDS = 30


def banner(config: Config, workdir: Path) -> str:
    """The resolved recipe, its data, the net by parts with the parameter count, the devices; loads no data."""
    training = config.training
    length = (
        f"{training.steps} steps" if training.steps is not None else f"{training.epochs} epochs"
    )
    lines = [f"  {name} {value}" for name, value in settings(to_json(config))]
    rows = {
        "data": config.data.describe(),
        "model": f"{type(config.model).__name__}, {config.model.parameter_count()} parameters",
        "devices": f"{parallel.describe_devices()}, by {config.parallel.description}",
        "length": f"{length}, batches of {training.batch_size} in {training.accumulation} micro-batches",
        "workdir": str(workdir),
    }
    facts = [f"{name:<10}{value}" for name, value in rows.items()]
    return "\n".join(["settings", *lines, "", "parameters", config.model.summary(), "", *facts])


def settings(values: Any, path: str = "-") -> list[tuple[str, str]]:
    """Each setting by its name on the command line, such as ("--training.batch-size", "128")."""
    if not isinstance(values, dict):
        return [(path, " ".join(map(str, values)) if isinstance(values, list) else str(values))]
    joint = "." if path != "-" else "-"
    named = {name: value for name, value in values.items() if name != "kind"}
    return [
        row
        for name, value in named.items()
        for row in settings(value, f"{path}{joint}{name.replace('_', '-')}")
    ]


class Reporter:
    """Called at every step; device values are read one interval late, so that no step waits for the host.

    `watch` knows what the steps looked at so far had to skip; one that is `skip_final_plot` leaves at its end what the run
    draws anew when it goes on.
    """

    def __init__(self, config: Config, images: ImageSet, workdir: Path, start: int):
        self._config, self._images, self._workdir = config, images, workdir
        self._total, self._steps_per_epoch = (
            config.total_steps(len(images)),
            config.steps_per_epoch(len(images)),
        )
        self._rate = learning_rate(config.optimizer, self._total, self._steps_per_epoch)
        self._sample_every = cadence_in_steps(
            config.log.samples_every, config.log.samples_every_epochs, self._steps_per_epoch
        )
        self._log = RunLog(workdir, start) if hosts.is_primary() else NullLog()
        options = {"unit": "step", "dynamic_ncols": True, "disable": not hosts.is_primary()}
        self._bar = tqdm(total=self._total, initial=start, **options)
        self._waiting: list[tuple[int, dict]] = []
        self.monitor, self.skip_final_plot = UpdateMonitor(start), False
        self._epoch_losses: list[jax.Array] = []
        self._epoch_began = self._drawn = time.perf_counter()

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
        """Logs, at the recipe's cadences, what a step gave."""
        self._bar.update()
        self.monitor.add(step, metrics["loss"], metrics["grad_norm"])
        self._epoch_losses.append(metrics["loss"])
        ends_epoch = step % self._steps_per_epoch == 0
        if step % self._config.log.every == 0 or step == self._total or ends_epoch:
            self._write_waiting()
            self._waiting.append((step, metrics))
        if ends_epoch or step == self._total:
            self._end_epoch(step)

    def draw(self, step: int, state: TrainState) -> None:
        """Leaves a grid of samples, at the recipe's cadence, by the state of a step."""
        due = step == self._total or (self._sample_every and step % self._sample_every == 0)
        if self._config.log.samples and due:
            params = parallel.gather_to_host(state.ema_params["ema"])
            if hosts.is_primary():
                with warn_on_write_error("a grid of samples"):
                    self._draw_grid(step, params)

    def report_until(self, step: int) -> None:
        """Waits for the steps up to that one, and tells what stands out in them."""
        for line in self.monitor.report_until(step):
            self._bar.write(line)

    def _write_waiting(self, more: dict[str, float] | None = None) -> None:
        for step, metrics in self._waiting:
            self.report_until(step)
            facts = {"learning_rate": self._rate(step - 1), "skipped": self.monitor.skipped}
            values = {"loss": metrics["loss"]} | metrics | facts | (more or {})
            self._log.scalars(step, {name: float(value) for name, value in values.items()})
            self._bar.set_postfix(loss=f"{float(values['loss']):.4f}")
        self._waiting = []
        if time.perf_counter() - self._drawn > CURVE_SECONDS:
            self._log.curve()
            self._drawn = time.perf_counter()

    def _end_epoch(self, step: int) -> None:
        epoch, epochs = -(-step // self._steps_per_epoch), -(-self._total // self._steps_per_epoch)
        losses, count = np.asarray(jax.device_get(self._epoch_losses)), len(self._epoch_losses)
        mean = (
            float(np.mean(losses[np.isfinite(losses)])) if np.isfinite(losses).any() else math.nan
        )
        rate = count * self._config.training.batch_size / (time.perf_counter() - self._epoch_began)
        whole = (
            count == self._steps_per_epoch
        )  # not after a resume within it, nor where the run ends within it
        part = "" if whole else f" of its last {count} steps"
        learning_rate = float(self._rate(step - 1))
        self._bar.write(
            f"epoch {epoch}/{epochs}: mean loss{part} {mean:.5f}, {rate:.0f} images/s, lr {learning_rate:.6f}"
        )
        self._write_waiting({"epoch": float(epoch), "epoch_loss": mean} if whole else None)
        self._epoch_losses, self._epoch_began = [], time.perf_counter()

    def _draw_grid(self, step: int, params: Params) -> None:
        config, began = self._config, time.perf_counter()
        folder = self._workdir / "samples"
        grid = sample_grid(config, params)
        image_grids.save_images(grid, folder / f"{step:08d}.png")
        plots.labelled_rows(
            prediction_rows(config, params, self._images), folder / f"{step:08d}_predictions.png"
        )
        self._log.image(step, "samples", image_grids.image_grid(grid))
        self._epoch_began += (
            time.perf_counter() - began
        )  # the rate an epoch line gives is that of training


def sample_grid(config: Config, params: Params) -> np.ndarray:
    """uint8 samples of the run's own seed, for a grid while training."""
    count, steps = config.log.samples, step_count(config.objective, config.sampling)
    sampling = config.sampling
    learned = with_learned_variance(config.objective, sampling).options.get("variance") == "learned"
    if config.log.sample_steps is not None and config.log.sample_steps < steps and not learned:
        sampling = dataclasses.replace(sampling, steps=config.log.sample_steps, timesteps=None)
    return generate(
        config, params, num=count, batch_size=count, seed=config.training.seed, sampling=sampling
    )[-1]


def prediction_rows(
    config: Config, params: Params, images: ImageSet
) -> list[tuple[str, np.ndarray]]:
    """S4's three rows at eight noise levels: input, noisy, the network's estimate of clean data."""
    x0, xt, t = _noise_levels(config, images)
    network = guided_network(
        config.model, params, jnp.arange(LEVELS) % (config.model.num_classes or 1)
    )
    prediction = _predict(config.objective, network, xt, t)
    rows = {"input": x0, "noisy": xt, "prediction": prediction}
    return [(name, pixels.to_uint8(np.asarray(row))) for name, row in rows.items()]


_predict = jax.jit(predict_x0, static_argnums=0)


def _noise_levels(config: Config, images: ImageSet):
    x0 = jnp.asarray(to_floats(images.read(np.arange(LEVELS) % len(images))["image"]))
    keys = sample_keys(config.training.seed, jnp.arange(LEVELS))
    return x0, *noise_ladder(keys, config.objective, x0)


def preview(config: Config, images: ImageSet, workdir: Path) -> None:
    """Leaves preview/data.png, 100 images of the first batches, and preview/noise.png, eight noise levels."""
    batch = batch_at(images, config.training.seed, 0, 100, flip=config.data.flip)["image"]
    image_grids.save_images(pixels.to_uint8(batch), workdir / "preview" / "data.png")
    x0, xt, _ = (np.asarray(x) for x in _noise_levels(config, images))
    span = np.abs(xt).max((1, 2, 3), keepdims=True)
    unclipped = xt / np.maximum(span, 1)
    rows = {"input": x0, "noisy, clipped": xt, "noisy, unclipped": unclipped}
    uint8 = [(name, pixels.to_uint8(row)) for name, row in rows.items()]
    plots.labelled_rows(uint8, workdir / "preview" / "noise.png")
