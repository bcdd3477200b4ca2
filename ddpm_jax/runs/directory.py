"""Check whether a recipe may resume in a run's directory, lock it, clear it, and roll it back."""

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

from ddpm_jax.config import RunConfig, config_to_json, differences
from ddpm_jax.devices import hosts
from ddpm_jax.errors import check
from ddpm_jax.files import atomic_file, check_name, check_writable
from ddpm_jax.latent_config import read_config
from ddpm_jax.runs import checkpoints, saved_steps
from ddpm_jax.settings_json import to_json
from ddpm_jax.training.update_monitor import UpdateMonitor

CONFIG = "config.json"
LOCK = ".lock"
AUTOENCODER = "autoencoder"
TOKENIZER = "tokenizer"
LATENTS = "latents.npz"
EVALUATION = "evaluation.json"
RUN_FILES = (
    "checkpoints",
    "snapshots",
    "samples",
    "preview",
    "tensorboard",
    "metrics*.jsonl",
    "loss.png",
    EVALUATION,
    "evaluation_*.png",
    "statistics.npz",
    AUTOENCODER,
    TOKENIZER,
    LATENTS,
    CONFIG,
)
"""Patterns of the files that a run, its evaluation and its statistics write to the directory."""
CHANGEABLE_SETTINGS = (
    "training.steps",
    "training.epochs",
    "training.skip_patience",
    "training.on_patience",
    "parallel.",
    "checkpoint.",
    "evaluation.",
    "ema.snapshots_every",
    "log.",
    "sampling.",
    "captions",
    "autoencoder.training.steps",
    "autoencoder.training.epochs",
    "autoencoder.training.skip_patience",
    "autoencoder.training.on_patience",
    "data.data_dir",
    "data.path",
    "data.condition_path",
    "data.max_pixels",
)
"""Prefixes of the settings that may differ when a run resumes."""
DATA_LOCATION_FIELDS = ("path", "data_dir", "condition_path")
"""Settings with the location of the data. They may differ between hosts."""


def load_config(workdir: Path, step: int | None) -> RunConfig:
    """The resolved config saved with a checkpoint, or with the run if `step` is None.

    Needs no device. Raise ValueError if the config cannot be read.
    """
    path = workdir / CONFIG if step is None else saved_steps.config_file(workdir, step)
    try:
        return read_config(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        reason = str(error).rstrip(".")
        raise ValueError(
            f"Cannot read {path} ({reason}): use another run or checkpoint, or the version of "
            "ddpm_jax that wrote it, or start the run afresh with --overwrite."
        ) from error


def comparable_config(config: RunConfig) -> dict:
    """The config without the location of its data, as JSON, to compare between hosts."""
    settings = to_json(config)
    data = {
        name: value for name, value in settings["data"].items() if name not in DATA_LOCATION_FIELDS
    }
    return settings | {"data": data}


def cpu_devices(workdir: Path) -> int | None:
    """The number of virtual CPU devices in the newest readable config of a run, or None.

    A run that still trains its autoencoder has a config in that folder alone.
    """
    for folder in (workdir, workdir / AUTOENCODER):
        for step in [*reversed(saved_steps.steps(folder)), None]:
            with contextlib.suppress(ValueError):
                return load_config(folder, step).parallel.cpu_devices
    return None


def resume(config: RunConfig, workdir: Path) -> int:
    """The step from which the config resumes, or 0 if the directory holds no run.

    Raise ValueError if the run there has another recipe, with a list of the differences, or if all
    its checkpoints are corrupt.
    """
    _check_path(workdir)
    start = saved_steps.newest(workdir)
    if not start and not (workdir / CONFIG).exists():
        return 0
    saved = load_config(workdir, start or None)
    names = differences(config, saved)
    changed = [name for name in names if not name.startswith(CHANGEABLE_SETTINGS)]
    check(
        not changed,
        f"The run in {workdir} has other settings ({', '.join(changed[:5])}): use the settings of "
        "that run, choose another --workdir, or start afresh with --overwrite.",
    )
    return start


def _check_path(workdir: Path) -> None:
    check_name(workdir)
    check(
        not workdir.exists() or workdir.is_dir(),
        f"The run directory {workdir} is a file: choose another --workdir.",
    )


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Lock the directory against other runs. Raise ValueError if one is using it.

    The operating system releases the lock after a crash. On several hosts only the primary host
    locks the directory. If this function made it, and it holds nothing but the lock after the
    block, it is removed.
    """
    if not hosts.is_primary():
        yield
        return
    _check_path(workdir)
    is_new = not workdir.exists()
    check_writable(workdir / LOCK)
    try:
        with filelock.FileLock(workdir / LOCK, timeout=0):
            try:
                yield
            finally:
                if is_new and {path.name for path in workdir.iterdir()} == {LOCK}:
                    shutil.rmtree(workdir)
    except filelock.Timeout:
        raise ValueError(
            f"Another run is using {workdir}: wait for it to end, or choose another --workdir."
        ) from None


def clear(workdir: Path) -> None:
    """Remove the files of a run from its directory. Without a run, nothing is removed."""
    is_run = any((folder / CONFIG).exists() for folder in (workdir, workdir / AUTOENCODER))
    if not (is_run or saved_steps.steps(workdir)):
        return
    paths = [path for pattern in RUN_FILES for path in workdir.glob(pattern)]
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def rollback(
    config: RunConfig, workdir: Path, done: int, template: dict[str, Any], monitor: UpdateMonitor
) -> dict[str, Any]:
    """Restore the newest checkpoint before the updates that were skipped up to step `done`.

    Return the items of the state named in `template`. Later checkpoints are renamed. If no step
    after the rollback is finite, the next rollback goes back one checkpoint further. Raise
    ValueError if `training.on_patience` is "stop", or if there is no earlier checkpoint.
    """
    cause = (
        f"Loss or gradient was non-finite in {monitor.in_a_row} steps in a row, up to step {done}"
    )
    flags = config.FLAGS
    remedy = (
        "look for outliers in the data, or start another run, with a lower "
        f"{flags}optimizer.learning-rate or with {flags}optimizer.clip-norm 1"
    )
    check(
        config.training.on_patience == "rollback",
        f"{cause}: set {flags}training.on-patience rollback and resume, {remedy}.",
    )
    valid = saved_steps.valid_steps(workdir)
    earlier = (step for step in valid if step < monitor.last_finite_step)
    target = hosts.broadcast(next(earlier, 0) if hosts.is_primary() else 0)
    check(target > 0, f"{cause}, and no earlier checkpoint is left to roll back to: {remedy}.")
    print(f"{cause}: rolling back to the weights of step {target}.", file=sys.stderr)
    if hosts.is_primary():
        saved_steps.quarantine(workdir, target, saved_steps.ABANDONED_SUFFIX)
    for line in monitor.report_until(done):
        print(line, file=sys.stderr)
    monitor.reset(target)
    return checkpoints.restore(workdir, target, template)


def prepare(workdir: Path, config: RunConfig, start: int, overwritten: Path | None = None) -> None:
    """Prepare the directory for the steps after `start`, and write the config.

    Checkpoints later than `start` are renamed. The files of the run in the directory `overwritten`
    are removed first.
    """
    if overwritten is not None:
        clear(overwritten)
    saved_steps.quarantine(workdir, after=start)
    write_config(workdir, config)


def write_config(workdir: Path, config: RunConfig) -> None:
    """Write the resolved config to `config.json`."""
    workdir.mkdir(parents=True, exist_ok=True)
    with atomic_file(workdir / CONFIG) as file:
        file.write((json.dumps(config_to_json(config), indent=2) + "\n").encode())
