"""A small recipe by SGD, here and on real hosts.

Run as a program: helpers/hosts.py by_sgd FOLDER STEPS FSDP SPOILT [COORDINATOR HOSTS HOST],
or helpers/hosts.py both_ways FOLDER COORDINATOR HOSTS HOST.
"""

import dataclasses
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
from helpers.commands import arrays
from helpers.processes import ENV, free_address

from ddpm_jax.config import Checkpoint, Config, Log, Training
from ddpm_jax.data import InMemory
from ddpm_jax.data.digits import Digits
from ddpm_jax.devices import hosts, parallel
from ddpm_jax.devices.parallel import Parallel
from ddpm_jax.models.conv_unet import ConvUNet
from ddpm_jax.runs import directory, loop, progress
from ddpm_jax.runs.metrics import RunLog, read_metrics
from ddpm_jax.training.ema import Ema
from ddpm_jax.training.optimizer import skip_nonfinite
from ddpm_jax.training.step import TrainState

MODEL = ConvUNet(image_size=8, channels=1, widths=(8,), time_embedding_dim=8, groups=4, dropout=0.1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BySGD(Config):
    """A recipe trained by SGD: Adam divides by moments near 0, which enlarges rounding errors."""

    def make_optimizer(self, images: int) -> optax.GradientTransformation:
        tx = optax.MultiSteps(skip_nonfinite(optax.sgd(0.1)), self.training.accumulation)
        return tx.gradient_transformation()


CONFIG = BySGD(
    model=MODEL,
    data=Digits(flip=True),
    training=Training(steps=20, batch_size=16, accumulation=2),
    ema=Ema(decay=0.9, power=(0.1,), snapshots_every=10),
    checkpoint=Checkpoint(every=10),
    log=Log(every=1, samples=0),
)
SHORT = dataclasses.replace(
    CONFIG,
    training=dataclasses.replace(CONFIG.training, steps=8),
    ema=dataclasses.replace(CONFIG.ema, snapshots_every=4),
    checkpoint=Checkpoint(every=2),
)
"""The same for fewer steps."""
DRAWN = "drawn.npz"
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8)
IMAGES = InMemory(PIXELS, np.zeros(40, np.int32))
"""In place of the digits: scikit-learn takes seconds to import, as Matplotlib does for curves."""


def train(config: Config, folder: Path, on_save: loop.OnSave = loop.ignore_save) -> int:
    """Train to the end of the recipe, from the newest checkpoint if any; the exit status."""
    start = hosts.broadcast(directory.resume(config, folder))
    with (
        mock.patch.object(Digits, "load", return_value=IMAGES),
        mock.patch.object(RunLog, "curve", return_value=None),
    ):
        return loop.train(config, folder, start, on_save=on_save)


def by_sgd_here(folder: str, steps: str, fsdp: str, spoilt: str, *found: str) -> None:
    """Train up to that step in a folder; resumes if it holds a checkpoint.

    With fsdp above 1 every array that can be is split, and a grid of samples is drawn. If `spoilt`
    is not 0, the parameters become NaN after that step.
    """
    coordinator, *which = found or [None]
    parallel.MIN_SHARDED_SIZE = 1
    settings = {"steps": int(steps), "skip_patience": 3, "on_patience": "rollback"}
    config = dataclasses.replace(
        CONFIG,
        training=dataclasses.replace(CONFIG.training, **settings),
        parallel=Parallel(fsdp=int(fsdp)),
        checkpoint=Checkpoint(every=4) if int(spoilt) else CONFIG.checkpoint,
        log=CONFIG.log
        if fsdp == "1"
        else dataclasses.replace(CONFIG.log, samples=4, sample_steps=2),
    )
    if int(spoilt):
        spread, at = loop.step_over_devices, int(spoilt) * config.training.accumulation
        loop.step_over_devices = lambda config, tx: spoiling(spread(config, tx), at)
        loop.check_memory = lambda *_: None  # asks for the compiled step
    with hosts.distributed(coordinator, *map(int, which)):
        train(config, Path(folder))


def spoiling(train_step: Callable, at: int) -> Callable:
    """The training step, except that its call number `at` turns every parameter into NaN."""
    calls = itertools.count(1)

    def step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        state, metrics = train_step(state, batch)
        factor = jnp.nan if next(calls) == at else 1.0
        return state._replace(params=jax.tree.map(lambda x: x * factor, state.params)), metrics

    return step


def both_ways(folder: str, coordinator: str, count: str, index: str) -> None:
    """Train SHORT on this host and the others, in two folders.

    In `whole` the last host gets SIGTERM after the first save. In `split` the state is split over
    the devices of all hosts, the run ends at step 4, and what samples would be drawn with is left
    in DRAWN.
    """
    parallel.MIN_SHARDED_SIZE = 1
    last = int(index) == int(count) - 1
    split = dataclasses.replace(
        SHORT,
        training=dataclasses.replace(SHORT.training, steps=4),
        parallel=Parallel(fsdp=4),
        log=dataclasses.replace(SHORT.log, samples=4),
    )
    with hosts.distributed(coordinator, int(count), int(index)):
        on_save = terminate_after_first_save if last else loop.ignore_save
        status = train(SHORT, Path(folder) / "whole", on_save)
        assert status == 128 + signal.SIGTERM, status
        drawn = Path(folder) / DRAWN
        keep = lambda self, step, params: np.savez(drawn, *jax.tree.leaves(params))  # noqa: E731
        progress.Reporter._draw_grid = keep
        assert train(split, Path(folder) / "split") == 0


def terminate_after_first_save(step: int, state: TrainState) -> None:
    """Send SIGTERM to this process at step 2."""
    if step == SHORT.checkpoint.every:
        os.kill(os.getpid(), signal.SIGTERM)


def start(devices: int, *command: object) -> subprocess.Popen:
    """A process of this file with so many devices, which shares the tests' compiled programs."""
    env = os.environ | ENV | {"JAX_NUM_CPU_DEVICES": str(devices)}
    env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    env["JAX_COMPILATION_CACHE_DIR"] = jax.config.jax_compilation_cache_dir
    arguments = [sys.executable, __file__, *map(str, command)]
    return subprocess.Popen(arguments, env=env, stderr=subprocess.PIPE, text=True)


def all_end(processes: list[subprocess.Popen]) -> None:
    """Wait for the processes; AssertionError with what they wrote to stderr if one failed."""
    words = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(words)


def both_ways_on_two_hosts(folder: Path) -> None:
    """`both_ways` on two real hosts with two devices each."""
    address = free_address()
    all_end([start(2, "both_ways", folder, address, 2, host) for host in range(2)])


def by_sgd(
    folder: Path, hosts: int = 1, steps: int = 20, devices: int = 1, fsdp: int = 1, spoilt: int = 0
) -> tuple[list[np.ndarray], list[float]]:
    """The arrays and the losses after so many steps on real hosts with so many devices each."""
    address = free_address()
    found = [[address, hosts, host] if hosts > 1 else [] for host in range(hosts)]
    all_end([start(devices, "by_sgd", folder, steps, fsdp, spoilt, *which) for which in found])
    return outcome(folder, steps)


def outcome(folder: Path, step: int) -> tuple[list[np.ndarray], list[float]]:
    """The arrays saved at a step, and the losses up to the end of the run."""
    losses = [line["loss"] for line in read_metrics(folder / "metrics.jsonl")]
    return arrays(folder, step), losses


def assert_close(ours: tuple, theirs: tuple) -> None:
    """Parameters, averages and losses agree to 1e-6; a NaN loss is NaN in both."""
    losses = (np.asarray(losses, np.float64) for _, losses in (ours, theirs))
    np.testing.assert_allclose(*losses, rtol=1e-6)
    for mine, yours in zip(ours[0], theirs[0], strict=True):
        np.testing.assert_allclose(mine, yours, rtol=1e-6, atol=1e-6)


if __name__ == "__main__":
    {"by_sgd": by_sgd_here, "both_ways": both_ways}[sys.argv[1]](*sys.argv[2:])
