"""The parameters that a run has saved: an average by name, or one rebuilt from snapshots."""

from pathlib import Path

import jax
import numpy as np

from ddpm_jax.config import Config
from ddpm_jax.devices import parallel
from ddpm_jax.errors import check
from ddpm_jax.models import Params
from ddpm_jax.runs import checkpoints
from ddpm_jax.runs import steps as saved_steps
from ddpm_jax.training import ema
from ddpm_jax.training.ema import Ema

DEFAULT_WEIGHTS = "ema"
"""The average that samples are drawn with unless another is asked for."""


def load_params(config: Config, workdir: Path, step: int, weights: str) -> Params:
    """The parameters of a checkpoint on every local device; of its averages only what is needed is read.

    `weights` is "raw", the name of an average such as "ema", or the length of one to rebuild, such as "0.08". Raises
    ValueError where the run has no such average, or not enough of its past to rebuild it.
    """
    like = jax.eval_shape(config.model.init, jax.random.key(0))
    if weights == "raw":
        return checkpoints.restore(workdir, step, {"params": parallel.replicated_template(like)})[
            "params"
        ]
    if weights in (*config.ema.decays, *config.ema.power_averages):
        folder = _averages(workdir, step)
        return checkpoints.read_trees(folder, {weights: parallel.replicated_template(like)})[
            weights
        ]
    return parallel.replicate(
        _rebuild(config.ema, workdir, step, _length(weights, config.ema), like)
    )


def _averages(workdir: Path, step: int) -> Path:
    return workdir / saved_steps.FOLDER / str(step) / "ema_params"


def _length(weights: str, settings: Ema) -> float:
    names = ", ".join(["raw", *settings.decays, *settings.power_averages])
    try:
        length = float(weights)
    except ValueError:
        raise ValueError(f"unknown weights {weights!r}; there are: {names}") from None
    check(
        bool(settings.power_averages),
        f"weights {weights} are the length of an average to rebuild, from power-function averages that this run did "
        f"not track (train with --ema.power 0.05 0.1); there are: {names}",
    )
    return length


def _rebuild(settings: Ema, workdir: Path, step: int, length: float, like: Params) -> Params:
    past = [t for t in saved_steps.valid_steps(workdir, saved_steps.SNAPSHOTS) if t < step][::-1]
    folders = [workdir / saved_steps.SNAPSHOTS / str(t) for t in past] + [_averages(workdir, step)]
    t = np.repeat([*past, step], len(settings.power_averages))
    gamma = np.tile(
        [ema.power_gamma(track) for track in settings.power_averages.values()], len(folders)
    )
    weights, residual = ema.solve_weights(t, gamma, step, ema.power_gamma(length))
    check(
        residual <= ema.MAX_RESIDUAL,
        f"an average of length {length} would be off by {residual:.0%} at step {step}, more than "
        f"{ema.MAX_RESIDUAL:.0%}; {len(past)} earlier snapshots of {', '.join(settings.power_averages)} are enough for "
        f"{', '.join(map(str, ema.reachable_lengths(t, gamma, step))) or 'no other length'}",
    )
    host = jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), like)
    wanted = dict.fromkeys(settings.power_averages, host)
    found = (checkpoints.read_trees(folder, wanted) for folder in folders)
    return ema.combine((trees[name] for trees in found for name in wanted), weights)


def snapshot(
    settings: Ema,
    writer: checkpoints.CheckpointWriter,
    step: int,
    total: int,
    averages: dict[str, Params],
) -> None:
    """Keeps the power-function averages for good where the settings ask for it at this step of `total`."""
    every = settings.snapshots_every or -(-total // ema.SNAPSHOTS)
    if settings.power_averages and step % every == 0:
        writer.save_snapshot(step, {name: averages[name] for name in settings.power_averages})
