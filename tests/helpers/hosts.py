"""Train a small recipe by SGD, in this process and on real hosts.

As a program, one host of a run:

    python helpers/hosts.py sgd FOLDER STEPS FSDP NAN_STEP [COORDINATOR HOSTS HOST]
    python helpers/hosts.py replicated_and_sharded FOLDER COORDINATOR HOSTS HOST
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

from ddpm_jax import use_kernels
from ddpm_jax.config import Checkpoint, Config, Log, Training
from ddpm_jax.data.digits import Digits
from ddpm_jax.data.loading import InMemory
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
class SGDConfig(Config):
    """A config trained by SGD: Adam divides by moments near 0, which amplifies rounding errors."""

    def make_optimizer(self, num_images: int) -> optax.GradientTransformation:
        tx = optax.MultiSteps(skip_nonfinite(optax.sgd(0.1)), self.training.accumulation)
        return tx.gradient_transformation()


CONFIG = SGDConfig(
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
    checkpoint=Checkpoint(every=4),
)
"""The same recipe with 8 steps."""
SAMPLED_PARAMS = "sampled_params.npz"
"""The file in which `replicated_and_sharded` leaves the parameters that draw the sample grid."""
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8)
IMAGES = InMemory(PIXELS, np.zeros(40, np.int32))
"""Replaces the digits, because scikit-learn takes seconds to import."""


def train(config: Config, folder: Path, on_save: loop.OnSave | None = None) -> int:
    """Train to the end of the recipe, from the newest checkpoint if any. Returns the exit status.

    Draws no loss curve, because Matplotlib takes seconds to import.
    """
    start = hosts.broadcast(directory.resume(config, folder))
    with (
        mock.patch.object(Digits, "load", return_value=IMAGES),
        mock.patch.object(RunLog, "curve", return_value=None),
    ):
        return loop.train(config, folder, start, on_save=on_save)


def sgd(folder: str, steps: str, fsdp: str, nan_step: str, *host: str) -> None:
    """Train up to a step on this host. Resumes if the folder holds a checkpoint.

    With fsdp above 1 every array with an axis that fsdp divides is sharded, and a sample grid is
    drawn. If `nan_step` is not 0, the parameters become NaN after that step.
    """
    coordinator, *numbers = host or [None]
    parallel.MIN_SHARDED_SIZE = 1
    training = dataclasses.replace(
        CONFIG.training, steps=int(steps), skip_patience=3, on_patience="rollback"
    )
    config = dataclasses.replace(CONFIG, training=training, parallel=Parallel(fsdp=int(fsdp)))
    if fsdp != "1":
        log = dataclasses.replace(CONFIG.log, samples=4, sample_steps=2)
        config = dataclasses.replace(config, log=log)
    if int(nan_step):
        config = dataclasses.replace(config, checkpoint=Checkpoint(every=4))
        make_step = loop.parallel_train_step
        call = int(nan_step) * training.accumulation
        loop.parallel_train_step = lambda *args: with_nan_at(call, make_step(*args))
        # The check asks for the compiled step, which the replacement is not.
        loop.check_memory = lambda *_: None
    with hosts.distributed(coordinator, *map(int, numbers)):
        train(config, Path(folder))


def with_nan_at(call: int, train_step: Callable) -> Callable:
    """The training step, except that its call of this number turns every parameter into NaN."""
    calls = itertools.count(1)

    def step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        state, metrics = train_step(state, batch)
        factor = jnp.nan if next(calls) == call else 1.0
        return state._replace(params=jax.tree.map(lambda x: x * factor, state.params)), metrics

    return step


def replicated_and_sharded(folder: str, coordinator: str, num_hosts: str, host: str) -> None:
    """Train SHORT twice on this host and the others.

    In `replicated` the last host receives SIGTERM after the first save. In `sharded` the state is
    split over the devices of all hosts, the run ends at step 4, and the parameters that would draw
    the sample grid are saved as SAMPLED_PARAMS. The kernels, which take long to compile, are off.
    """
    parallel.MIN_SHARDED_SIZE = 1
    use_kernels(False)
    is_last = int(host) == int(num_hosts) - 1
    sharded = dataclasses.replace(
        SHORT,
        training=dataclasses.replace(SHORT.training, steps=4),
        parallel=Parallel(fsdp=4),
        log=dataclasses.replace(SHORT.log, samples=4),
    )
    path = Path(folder) / SAMPLED_PARAMS

    def save_params(reporter, step, params):
        np.savez(path, *jax.tree.leaves(params))

    with hosts.distributed(coordinator, int(num_hosts), int(host)):
        on_save = terminate_after_first_save if is_last else None
        status = train(SHORT, Path(folder) / "replicated", on_save)
        assert status == 128 + signal.SIGTERM, status
        progress.Reporter._draw_grid = save_params
        assert train(sharded, Path(folder) / "sharded") == 0


def terminate_after_first_save(step: int, state: TrainState) -> None:
    """Send SIGTERM to this process at the first save of SHORT."""
    if step == SHORT.checkpoint.every:
        os.kill(os.getpid(), signal.SIGTERM)


def start(num_devices: int, *arguments: object) -> subprocess.Popen:
    """Start this file as a process with `num_devices` devices and the tests' compilation cache."""
    env = os.environ | ENV | {"JAX_NUM_CPU_DEVICES": str(num_devices)}
    env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    env["JAX_COMPILATION_CACHE_DIR"] = jax.config.jax_compilation_cache_dir
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)


def wait_for_all(processes: list[subprocess.Popen]) -> None:
    """Wait for the processes. Raise AssertionError with their stderr if one failed."""
    errors = [process.communicate(timeout=240)[1] for process in processes]
    statuses = [process.returncode for process in processes]
    assert statuses == [0] * len(processes), "\n".join(errors)


def train_replicated_and_sharded(folder: Path) -> None:
    """Run `replicated_and_sharded` on two real hosts with two devices each."""
    address = free_address()
    program = ("replicated_and_sharded", folder, address, 2)
    wait_for_all([start(2, *program, host) for host in range(2)])


def train_by_sgd(
    folder: Path,
    num_hosts: int = 1,
    steps: int = 20,
    num_devices: int = 1,
    fsdp: int = 1,
    nan_step: int = 0,
) -> tuple[list[np.ndarray], list[float]]:
    """Run `sgd` on real hosts with `num_devices` devices each, and return its outcome."""
    program = ("sgd", folder, steps, fsdp, nan_step)
    if num_hosts == 1:
        wait_for_all([start(num_devices, *program)])
    else:
        cluster = (free_address(), num_hosts)
        wait_for_all([start(num_devices, *program, *cluster, host) for host in range(num_hosts)])
    return outcome(folder, steps)


def outcome(folder: Path, step: int) -> tuple[list[np.ndarray], list[float]]:
    """The arrays saved at a step, and the losses in the run's log."""
    losses = [line["loss"] for line in read_metrics(folder / "metrics.jsonl")]
    return arrays(folder, step), losses


def assert_close(ours: tuple, theirs: tuple) -> None:
    """Assert that two outcomes agree to 1e-6. A NaN loss must be NaN in both."""
    our_arrays, our_losses = ours
    their_arrays, their_losses = theirs
    our_losses = np.asarray(our_losses, np.float64)
    their_losses = np.asarray(their_losses, np.float64)
    np.testing.assert_allclose(our_losses, their_losses, rtol=1e-6)
    for our_array, their_array in zip(our_arrays, their_arrays, strict=True):
        np.testing.assert_allclose(our_array, their_array, rtol=1e-6, atol=1e-6)


PROGRAMS = {"sgd": sgd, "replicated_and_sharded": replicated_and_sharded}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](*sys.argv[2:])
