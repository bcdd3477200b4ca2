"""A run of a tiny network, shared by all tests of this folder."""

import jax
import numpy as np
import pytest
from helpers.training import CONV_UNET

from ddpm_jax.config import Config, Training, config_to_json
from ddpm_jax.data.digits import Digits
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.runs.checkpoints import CheckpointWriter

TIMESTEPS = 8


@pytest.fixture(scope="session")
def config():
    """The recipe of a tiny network, with 8 timesteps."""
    objective = Objective(schedule="squaredcos", timesteps=TIMESTEPS)
    return Config(model=CONV_UNET, data=Digits(), training=Training(steps=5), objective=objective)


@pytest.fixture(scope="session")
def params(config):
    """Parameters without zeros."""
    rng = np.random.default_rng(0)
    fresh = config.model.init(jax.random.key(0))
    return jax.tree.map(lambda p: p + 0.1 * rng.standard_normal(p.shape, np.float32), fresh)


@pytest.fixture(scope="session")
def run(tmp_path_factory, config, params):
    """A run's folder with one checkpoint. Its average is twice the parameters."""
    folder = tmp_path_factory.mktemp("run")
    twice = jax.tree.map(lambda x: 2 * x, params)
    parts = {"params": params, "ema_params": {"ema": twice}, "opt_state": {"count": np.zeros(1)}}
    with CheckpointWriter(folder) as checkpoints:
        checkpoints.save(5, parts, config_to_json(config))
    return folder
