"""Make runs on disk without training: a small recipe, and checkpoints of random parameters."""

import dataclasses
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddpm_jax.config import Checkpoint, Config, Log, RunConfig, Training, config_to_json
from ddpm_jax.data.digits import Digits
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.models import ImageNetwork
from ddpm_jax.models.conv_unet import ConvUNet
from ddpm_jax.runs import directory
from ddpm_jax.runs.checkpoints import CheckpointWriter
from ddpm_jax.training.ema import Ema
from ddpm_jax.training.optimizer import Optimizer

NET = ConvUNet(image_size=8, channels=1, widths=(4,), time_embedding_dim=4, groups=2)
"""The network that compiles fastest."""

RECIPE = Config(
    model=dataclasses.replace(NET, dropout=0.1),
    data=Digits(flip=True),
    training=Training(batch_size=16, accumulation=2, steps=8),
    optimizer=Optimizer(learning_rate=0.01),
    ema=Ema(decay=0.9, extra_decays=(0.1,), power=(0.05, 0.1), snapshots_every=2),
    sampling=Sampling(steps=10),
    checkpoint=Checkpoint(every=4),
    log=Log(every=1, samples=4, sample_steps=2),
)
"""A recipe that uses every part of a state: dropout, accumulation, averages of both kinds."""


def small_recipe(**settings: Any) -> Config:
    """A recipe of NET and the digits, with a log line at every step and no sample grids."""
    defaults = {
        "model": NET,
        "data": Digits(),
        "training": Training(batch_size=16, steps=8),
        "log": Log(every=1, samples=0),
    }
    return Config(**defaults | settings)


def random_params(model: ImageNetwork, step: int = 0, weights: str = "ema") -> dict:
    """Random parameters as NumPy arrays, a function of the step and the name of the weights."""
    rng = np.random.default_rng(zlib.crc32(f"{step} {weights}".encode()))

    def draw(leaf: Any) -> np.ndarray:
        return rng.uniform(-0.1, 0.1, leaf.shape).astype(np.float32)

    return jax.tree.map(draw, model.shapes())


def save_run(
    folder: Path,
    config: RunConfig,
    steps: tuple[int, ...] = (4, 8),
    classes: tuple[str, ...] | None = tuple("0123456789"),
    **facts: Any,
) -> Path:
    """Save checkpoints of these steps, with parameters from `random_params`.

    `facts` are more of what a step was trained on.
    """
    directory.write_config(folder, config)
    with CheckpointWriter(folder, Checkpoint(keep_last=len(steps))) as checkpoints:
        names = (*config.ema.decays, *config.ema.power_averages)
        for step in steps:
            items = {
                "params": random_params(config.model, step, "raw"),
                "ema_params": {name: random_params(config.model, step, name) for name in names},
                "opt_state": {"count": np.zeros(1, np.float32)},
            }
            data = {"images": 1797, "classes": classes, **facts}
            checkpoints.save(step, items, config_to_json(config), data)
    return folder
