"""A run's directory: may this recipe go on in it, and what is in it to throw away."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax

from ddpm_jax import checkpoint, parallel
from ddpm_jax.config import Config, check, differences, from_json, to_json
from ddpm_jax.models import Params

CONFIG = "config.json"
LEFT_BY_A_RUN = ("checkpoints", "samples", "preview", "tensorboard", "metrics*.jsonl", "loss.png", CONFIG)
FREE_TO_CHANGE = (
    "training.steps",
    "training.epochs",
    "training.parallel",
    "training.cpu_devices",
    "checkpoint.",
    "log.",
    "sampling.",
    "data.data_dir",
    "data.path",
)


def load_config(workdir: Path, step: int | None) -> Config:
    """The resolved config saved with a checkpoint, or that of a run without one yet; needs no device.

    Raises ValueError where it cannot be read.
    """
    path = workdir / CONFIG if step is None else checkpoint.config_file(workdir, step)
    try:
        return from_json(json.loads(path.read_text()))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}): use another checkpoint, or --overwrite the run") from error


def load_params(config: Config, workdir: Path, step: int, weights: str) -> Params:
    """The parameters of a checkpoint, "ema" or "raw", on every local device; nothing else of it is read."""
    like = parallel.like_replicated(jax.eval_shape(config.model.init, jax.random.key(0)))
    with checkpoint.Checkpoints(workdir) as checkpoints:
        if weights == "raw":
            return checkpoints.restore(step, {"params": like})["params"]
        return checkpoints.restore(step, {"ema_params": {"ema": like}})["ema_params"]["ema"]


def resume(config: Config, workdir: Path) -> tuple[Config, int]:
    """The config to go on with and the step to go on from, 0 where no run is in the directory.

    Raises ValueError, naming what differs, if another recipe's run is there.
    """
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"{workdir} is a file: choose another --workdir")
    found = checkpoint.steps(workdir)
    if not found and not (workdir / CONFIG).exists():
        return config, 0
    saved = load_config(workdir, found[-1] if found else None)
    changed = [name for name in differences(config, saved) if not name.startswith(FREE_TO_CHANGE)]
    check(
        not changed,
        f"{workdir} holds a run with other settings ({', '.join(changed[:5])}): choose another --workdir, "
        "give the settings of that run, or --overwrite it",
    )
    training = config.training
    if training.cpu_devices is None:
        training = dataclasses.replace(training, cpu_devices=saved.training.cpu_devices)
    return dataclasses.replace(config, training=training), found[-1] if found else 0


def clear(workdir: Path) -> None:
    """Removes what a run leaves in its directory, by name; other files stay."""
    for path in [path for pattern in LEFT_BY_A_RUN for path in workdir.glob(pattern)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_config(workdir: Path, config: Config) -> None:
    """Leaves the resolved config as `config.json`, for people."""
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / CONFIG).write_text(json.dumps(to_json(config), indent=2) + "\n")
