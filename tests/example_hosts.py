"""A small recipe by SGD on real hosts: python tests/example_hosts.py FOLDER STEPS FSDP [COORDINATOR COUNT INDEX]"""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax

sys.path.insert(0, str(Path(__file__).parents[1]))
from example_commands import arrays
from example_faults import ENV, free_address

from ddpm_jax import hosts, loop, parallel, saved_steps
from ddpm_jax.config import Checkpoint, Config, Ema, Log, Parallel, Training
from ddpm_jax.data.digits import Digits
from ddpm_jax.models.unet import UNet
from ddpm_jax.run_log import read_metrics

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


def main(folder: str, steps: str, fsdp: str, *found: str) -> None:
    """The steps up to that one in a folder, which ends with a checkpoint and may begin with one.

    With fsdp above 1 every array that can be is split, and a grid of samples is drawn.
    """
    jax.config.update("jax_compilation_cache_dir", str(Path(folder).parent / "cache"))
    coordinator, *which = found or [None]
    parallel.LEAST_SPLIT = 1
    config = dataclasses.replace(
        CONFIG,
        training=dataclasses.replace(CONFIG.training, steps=int(steps)),
        parallel=Parallel(fsdp=int(fsdp)),
        log=CONFIG.log if fsdp == "1" else dataclasses.replace(CONFIG.log, samples=4, sample_steps=2),
    )
    with hosts.together(coordinator, *map(int, which)):
        tx = optax.MultiSteps(optax.sgd(0.1), config.training.accumulation).gradient_transformation()
        images = config.data.load(config.model.image_size, config.model.channels)
        start = hosts.of_first(saved_steps.newest(folder))
        at = (config, tx, Path(folder), start, len(images))
        state = loop.resumed_state(*at) if start else loop.first_state(config, tx)
        loop.walk(config, Path(folder), images, loop.step_over_devices(config, tx), state)


def by_sgd(
    folder: Path, hosts: int = 1, steps: int = 20, devices: int = 1, fsdp: int = 1
) -> tuple[list[np.ndarray], list[float]]:
    """The arrays and the losses after so many steps on real hosts with so many devices each."""
    address = free_address()
    found = [[address, hosts, host] if hosts > 1 else [] for host in range(hosts)]
    env = os.environ | ENV | {"JAX_NUM_CPU_DEVICES": str(devices)}
    start = [sys.executable, __file__, folder, steps, fsdp]
    commands = [[*map(str, [*start, *which])] for which in found]
    options = {"env": env, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **options) for command in commands]
    words = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * hosts, "\n".join(words)
    return arrays(folder, steps), [line["loss"] for line in read_metrics(folder / "metrics.jsonl")]


def assert_close(ours: tuple, theirs: tuple) -> None:
    """Parameters, averages and losses agree to 1e-6."""
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-6)
    for mine, yours in zip(ours[0], theirs[0], strict=True):
        np.testing.assert_allclose(mine, yours, rtol=1e-6, atol=1e-6)


if __name__ == "__main__":
    main(*sys.argv[1:])
