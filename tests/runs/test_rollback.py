"""Roll a run back after non-finite losses, one checkpoint further each time."""

import dataclasses

import numpy as np
import pytest
from helpers.saved_runs import small_recipe

from ddpm_jax.config import Checkpoint, Training
from ddpm_jax.runs import directory
from ddpm_jax.runs.checkpoints import CheckpointWriter
from ddpm_jax.runs.saved_steps import FOLDER, steps
from ddpm_jax.training.update_monitor import UpdateMonitor

CONFIG = small_recipe(training=Training(steps=20))


def test_each_rollback_goes_one_checkpoint_further_until_none_is_left(tmp_path, capsys):
    def items(step):
        return {"params": {"w": np.full(3, step, np.float32)}}

    with CheckpointWriter(tmp_path, Checkpoint(keep_last=3)) as checkpoints:
        for step in (2, 4, 8):
            checkpoints.save(step, items(step), {})
    training = Training(steps=20, on_patience="rollback")
    config = dataclasses.replace(CONFIG, training=training)
    monitor = UpdateMonitor(8)
    for target in (4, 2):
        restored = directory.rollback(config, tmp_path, 11, items(0), monitor)
        np.testing.assert_array_equal(restored["params"]["w"], target)
        warning = f"up to step 11: rolling back to the weights of step {target}."
        assert warning in capsys.readouterr().err
        assert steps(tmp_path)[-1] == monitor.last_finite_step == target
    with pytest.raises(ValueError, match="no earlier checkpoint is left to roll back to: look"):
        directory.rollback(config, tmp_path, 11, items(0), monitor)
    names = sorted(path.name for path in (tmp_path / FOLDER).iterdir())
    assert names == ["2", "4-1.abandoned", "8-1.abandoned"]
    message = r"up to step 11: set --training\.on-patience rollback and resume, look for"
    with pytest.raises(ValueError, match=message):
        directory.rollback(CONFIG, tmp_path, 11, items(0), monitor)
    assert steps(tmp_path) == [2]
