"""A run's directory: may this recipe go on in it, and what is in it to throw away."""

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

from ddpm_jax.config import Config, config_from_json, config_to_json, differences
from ddpm_jax.devices import hosts
from ddpm_jax.errors import check
from ddpm_jax.files import atomic_file
from ddpm_jax.runs import checkpoints
from ddpm_jax.runs import steps as saved_steps
from ddpm_jax.training.update_monitor import UpdateMonitor

CONFIG, LOCK = "config.json", ".lock"
LEFT_BY_A_RUN = (
    "checkpoints",
    "snapshots",
    "samples",
    "preview",
    "tensorboard",
    "metrics*.jsonl",
    "loss.png",
    "bits_per_dim.*",
    "statistics.npz",
    CONFIG,
)
FREE_TO_CHANGE = (
    "training.steps",
    "training.epochs",
    "training.skip_patience",
    "training.on_patience",
    "parallel.",
    "checkpoint.",
    "ema.snapshots_every",
    "log.",
    "sampling.",
    "data.data_dir",
    "data.path",
)


def load_config(workdir: Path, step: int | None) -> Config:
    """The resolved config saved with a checkpoint, or that of a run without one yet; needs no device.

    Raises ValueError where it cannot be read.
    """
    path = workdir / CONFIG if step is None else saved_steps.config_file(workdir, step)
    try:
        return config_from_json(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        remedy = "use another run or checkpoint, or the version of ddpm_jax that wrote it; --overwrite trains afresh"
        raise ValueError(f"{path} cannot be read ({error}): {remedy}") from error


def cpu_devices(workdir: Path) -> int | None:
    """The virtual CPU devices of the run that is in a directory, as its newest config that can be read says, if any."""
    for step in [*reversed(saved_steps.steps(workdir)), None]:
        with contextlib.suppress(ValueError):
            return load_config(workdir, step).parallel.cpu_devices
    return None


def resume(config: Config, workdir: Path) -> int:
    """The step from which the config goes on, 0 where no run is in the directory.

    Raises ValueError, naming what differs, if another recipe's run is there, and where all checkpoints are damaged.
    """
    _check_is_no_file(workdir)
    start = saved_steps.newest(workdir)
    if not start and not (workdir / CONFIG).exists():
        return 0
    saved = load_config(workdir, start or None)
    changed = [name for name in differences(config, saved) if not name.startswith(FREE_TO_CHANGE)]
    check(
        not changed,
        f"{workdir} holds a run with other settings ({', '.join(changed[:5])}): choose another --workdir, "
        "give the settings of that run, or --overwrite it",
    )
    return start


def _check_is_no_file(workdir: Path) -> None:
    check(
        not workdir.exists() or workdir.is_dir(), f"{workdir} is a file: choose another --workdir"
    )


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Keeps other runs out of a directory; raises ValueError where one is at work. A crash leaves no lock behind.

    Of several hosts the first does it for all.
    A directory in which nothing was left is gone afterwards.
    """
    if not hosts.is_primary():
        yield
        return
    _check_is_no_file(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(workdir / LOCK, timeout=0):
            try:
                yield
            finally:
                if {path.name for path in workdir.iterdir()} == {LOCK}:
                    shutil.rmtree(workdir)
    except filelock.Timeout:
        raise ValueError(
            f"another run is at work in {workdir}: wait for its end or choose another --workdir"
        ) from None


def clear(workdir: Path) -> None:
    """Removes what a run leaves in its directory, by name; other files stay."""
    for path in [path for pattern in LEFT_BY_A_RUN for path in workdir.glob(pattern)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def rollback(
    config: Config, workdir: Path, done: int, like: dict[str, Any], monitor: UpdateMonitor
) -> dict[str, Any]:
    """The parts of the state from the newest checkpoint before the updates that were skipped up to step `done`.

    Those after it are set aside. Where not one step with its weights is finite, the next time is one further back.
    Raises ValueError where the recipe says to stop and where there is none.
    """
    settings = config.training
    message = (
        f"loss or gradient was not finite in {monitor.in_a_row} steps in a row, up to step {done}"
    )
    remedy = "lower --optimizer.learning-rate, set --optimizer.clip-norm 1, or look for odd values in the data"
    check(
        settings.on_patience == "rollback",
        f"{message}: {remedy}, or --training.on-patience rollback",
    )
    found = (step for step in saved_steps.valid_steps(workdir) if step < monitor.last_finite_step)
    before = hosts.broadcast(next(found, 0) if hosts.is_primary() else 0)
    check(
        before > 0, f"{message}, and there is no checkpoint to go back to that could help: {remedy}"
    )
    print(f"{message}: goes on with the weights of step {before}", file=sys.stderr)
    if hosts.is_primary():
        saved_steps.quarantine(workdir, before, saved_steps.ABANDONED)
    for line in monitor.report_until(done):
        print(line, file=sys.stderr)
    monitor.reset(before)
    return checkpoints.restore(workdir, before, like)


def prepare(workdir: Path, config: Config, start: int, overwrite: bool) -> None:
    """Makes the directory ready for the steps after `start`: what a run made that went further is out of the way."""
    if overwrite:
        clear(workdir)
    saved_steps.quarantine(workdir, after=start)
    write_config(workdir, config)


def write_config(workdir: Path, config: Config) -> None:
    """Leaves the resolved config as `config.json`, for people."""
    workdir.mkdir(parents=True, exist_ok=True)
    with atomic_file(workdir / CONFIG) as file:
        file.write((json.dumps(config_to_json(config), indent=2) + "\n").encode())
