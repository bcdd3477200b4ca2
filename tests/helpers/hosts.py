"""A small recipe by SGD on real hosts: helpers.hosts.py FOLDER STEPS FSDP SPOILT [COORDINATOR HOSTS HOST]"""

import dataclasses
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
from helpers.commands import arrays
from helpers.processes import ENV, free_address

from ddpm_jax.config import Checkpoint, Config, Log, Training
from ddpm_jax.data.digits import Digits
from ddpm_jax.devices import hosts, parallel
from ddpm_jax.devices.parallel import Parallel
from ddpm_jax.models.unet import UNet
from ddpm_jax.runs import loop
from ddpm_jax.runs import steps as saved_steps
from ddpm_jax.runs.metrics import read_metrics
from ddpm_jax.training.ema import Ema
from ddpm_jax.training.optimizer import skip_nonfinite
from ddpm_jax.training.step import TrainState

CONFIG = Config(
    model=UNet(
        image_size=8, channels=1, widths=(8,), attention=(True,), layers_per_level=1, dropout=0.1, groups=4, head_dim=4
    ),
    data=Digits(flip=True),
    training=Training(steps=20, batch_size=16, accumulation=2),
    ema=Ema(decay=0.9, power=(0.1,), snapshots_every=10),
    checkpoint=Checkpoint(every=10),
    log=Log(every=1, samples=0),
)


def main(folder: str, steps: str, fsdp: str, spoilt: str, *found: str) -> None:
    """The steps up to that one in a folder, which ends with a checkpoint and may begin with one.

    With fsdp above 1 every array that can be is split, and a grid of samples is drawn. The parameters turn to NaN after
    the step `spoilt`, if it is not 0.
    """
    coordinator, *which = found or [None]
    parallel.LEAST_SPLIT = 1
    config = dataclasses.replace(
        CONFIG,
        training=dataclasses.replace(CONFIG.training, steps=int(steps), max_skipped=3, on_skipped="go_back"),
        parallel=Parallel(fsdp=int(fsdp)),
        checkpoint=Checkpoint(every=4) if int(spoilt) else CONFIG.checkpoint,
        log=CONFIG.log if fsdp == "1" else dataclasses.replace(CONFIG.log, samples=4, sample_steps=2),
    )
    with hosts.together(coordinator, *map(int, which)):
        tx = optax.MultiSteps(skip_nonfinite(optax.sgd(0.1)), config.training.accumulation).gradient_transformation()
        images = config.data.load(config.model.image_size, config.model.channels)
        start = hosts.of_first(saved_steps.newest(folder))
        at = (config, tx, Path(folder), start, len(images))
        state = loop.resumed_state(*at) if start else loop.first_state(config, tx)
        train_step = loop.step_over_devices(config, tx)
        if int(spoilt):
            train_step = spoiling(train_step, int(spoilt) * config.training.accumulation)
        loop.walk(config, Path(folder), images, train_step, state)


def spoiling(train_step: Callable, at: int) -> Callable:
    """The training step, but for its call number `at`, after which no parameter is a number any more."""
    calls = itertools.count(1)

    def step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        state, metrics = train_step(state, batch)
        factor = jnp.nan if next(calls) == at else 1.0
        return state._replace(params=jax.tree.map(lambda x: x * factor, state.params)), metrics

    return step


def by_sgd(
    folder: Path, hosts: int = 1, steps: int = 20, devices: int = 1, fsdp: int = 1, spoilt: int = 0
) -> tuple[list[np.ndarray], list[float]]:
    """The arrays and the losses after so many steps on real hosts with so many devices each.

    They share the compiled programs of this session's tests.
    """
    address = free_address()
    found = [[address, hosts, host] if hosts > 1 else [] for host in range(hosts)]
    env = os.environ | ENV | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    env |= {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    start = [sys.executable, __file__, folder, steps, fsdp, spoilt]
    commands = [[*map(str, [*start, *which])] for which in found]
    options = {"env": env, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **options) for command in commands]
    words = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * hosts, "\n".join(words)
    return arrays(folder, steps), [line["loss"] for line in read_metrics(folder / "metrics.jsonl")]


def assert_close(ours: tuple, theirs: tuple) -> None:
    """Parameters, averages and losses agree to 1e-6; a loss that was no number is none in both."""
    np.testing.assert_allclose(*(np.asarray(losses, np.float64) for _, losses in (ours, theirs)), rtol=1e-6)
    for mine, yours in zip(ours[0], theirs[0], strict=True):
        np.testing.assert_allclose(mine, yours, rtol=1e-6, atol=1e-6)


if __name__ == "__main__":
    main(*sys.argv[1:])
