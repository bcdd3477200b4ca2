"""Load the parameters of a saved step: raw, averaged, or an average rebuilt from snapshots."""

from pathlib import Path

import numpy as np

from ddpm_jax.config import RunConfig
from ddpm_jax.devices import parallel
from ddpm_jax.errors import check
from ddpm_jax.models import Params
from ddpm_jax.runs import checkpoints, saved_steps
from ddpm_jax.training import ema
from ddpm_jax.training.ema import Ema

DEFAULT_WEIGHTS = "ema"
"""The average that samples are drawn with by default."""


def load_params(config: RunConfig, workdir: Path, step: int, weights: str) -> Params:
    """Load the trained parameters of a checkpoint, replicated on every local device.

    A LoRA run trains a LoRA alone; `sources.RunSource.params` adds it to its base.
    `weights` is "raw", the name of an average such as "ema", or the length of an average to
    rebuild, such as "0.08". Only the averages needed are read. Raise ValueError if the run has no
    such average, or too few snapshots to rebuild it.
    """
    # Orbax would put one array after the other, which takes several times as long.
    return parallel.replicate(_read_params(config, workdir, step, weights))


def _read_params(config: RunConfig, workdir: Path, step: int, weights: str) -> Params:
    """The parameters of `load_params`, as NumPy arrays."""
    shapes = config.lora.trained_shapes(config.model.shapes())
    if weights == "raw":
        folder = workdir / saved_steps.FOLDER / str(step) / "params"
        return checkpoints.read_trees(folder, shapes, f"Checkpoint {step}")
    averages = _averages_folder(workdir, step)
    if weights in (*config.ema.decays, *config.ema.power_averages):
        return checkpoints.read_trees(averages, {weights: shapes})[weights]
    length = _parse_length(weights, config.ema)
    return _rebuild(config.ema, workdir, step, length, shapes)


def _averages_folder(workdir: Path, step: int) -> Path:
    return workdir / saved_steps.FOLDER / str(step) / "ema_params"


def _parse_length(weights: str, settings: Ema) -> float:
    names = ", ".join(["raw", *settings.decays, *settings.power_averages])
    try:
        length = float(weights)
    except ValueError:
        raise ValueError(f"Unknown weights {weights!r}: choose one of {names}.") from None
    check(
        bool(settings.power_averages),
        f"Weights of length {weights} are rebuilt from power-function averages, which this run "
        f"does not have: choose one of {names}, or train with --ema.power 0.05 0.1.",
    )
    return length


def _rebuild(settings: Ema, workdir: Path, step: int, length: float, shapes: Params) -> Params:
    """Rebuild an average from the checkpoint of a step and the snapshots before it."""
    valid = saved_steps.valid_steps(workdir, saved_steps.SNAPSHOTS)
    past = [t for t in valid if t < step][::-1]
    folders = [workdir / saved_steps.SNAPSHOTS / str(t) for t in past]
    folders.append(_averages_folder(workdir, step))

    # One entry for each average in each folder: (len(folders) * len(power_averages),)
    t = np.repeat([*past, step], len(settings.power_averages))
    gammas = [ema.power_gamma(power_length) for power_length in settings.power_averages.values()]
    gamma = np.tile(gammas, len(folders))
    weights, residual = ema.solve_weights(t, gamma, step, ema.power_gamma(length))
    if residual > ema.MAX_RESIDUAL:
        lengths = ema.reachable_lengths(t, gamma, step)
        remedy = "choose a later checkpoint"
        if lengths:
            remedy = f"choose one of {', '.join(map(str, lengths))}"
        raise ValueError(
            f"An average of length {length} would be off by {residual:.0%} at step {step}, more "
            f"than {ema.MAX_RESIDUAL:.0%}, with {len(past)} earlier snapshots of "
            f"{', '.join(settings.power_averages)}: {remedy}."
        )

    averages = dict.fromkeys(settings.power_averages, shapes)
    saved = (checkpoints.read_trees(folder, averages) for folder in folders)
    return ema.combine((trees[name] for trees in saved for name in averages), weights)


def save_snapshot_if_due(
    settings: Ema,
    writer: checkpoints.CheckpointWriter,
    step: int,
    total: int,
    averages: dict[str, Params],
) -> None:
    """Save the power-function averages permanently if a snapshot is due at `step` of `total`."""
    every = settings.snapshots_every or -(-total // ema.SNAPSHOTS)
    if settings.power_averages and step % every == 0:
        writer.save_snapshot(step, {name: averages[name] for name in settings.power_averages})
