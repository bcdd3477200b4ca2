"""Which checkpoint a run goes back to when its loss is not finite, and where the later ones go."""

import dataclasses

import numpy as np
import pytest
from helpers.saved_runs import small_recipe

from ddpm_jax.config import Checkpoint, Training
from ddpm_jax.runs import directory
from ddpm_jax.runs.checkpoints import CheckpointWriter
from ddpm_jax.runs.steps import FOLDER, steps
from ddpm_jax.training.update_monitor import UpdateMonitor

CONFIG = small_recipe(training=Training(steps=20))


def test_each_time_it_goes_one_checkpoint_further_back_until_there_is_none(tmp_path, capsys):
    def saved(step):
        return {"params": {"w": np.full(3, step, np.float32)}}

    with CheckpointWriter(tmp_path, Checkpoint(keep_last=3)) as checkpoints:
        for step in (2, 4, 8):
            checkpoints.save(step, saved(step), {})
    config, monitor = (
        dataclasses.replace(CONFIG, training=Training(steps=20, on_patience="rollback")),
        UpdateMonitor(8),
    )
    for before in (4, 2):
        found = directory.rollback(config, tmp_path, 11, saved(0), monitor)
        np.testing.assert_array_equal(found["params"]["w"], before)
        assert (
            f"up to step 11: goes on with the weights of step {before}" in capsys.readouterr().err
        )
        assert steps(tmp_path)[-1] == monitor.last_finite_step == before
    with pytest.raises(ValueError, match="no checkpoint to go back to that could help: lower"):
        directory.rollback(config, tmp_path, 11, saved(0), monitor)
    left = sorted(path.name for path in (tmp_path / FOLDER).iterdir())
    assert left == ["2", "4-1.abandoned", "8-1.abandoned"]
    with pytest.raises(
        ValueError, match=r"up to step 11: lower .*or --training\.on-patience rollback"
    ):
        directory.rollback(CONFIG, tmp_path, 11, saved(0), monitor)
    assert steps(tmp_path) == [2]
