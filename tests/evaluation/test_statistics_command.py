"""`python -m ddpm_jax.statistics`: the file it leaves beside a run, and what it refuses."""

import dataclasses

import jax
import numpy as np
import pytest
from ddpm_jax.corruption import Corruption

from ddpm_jax import statistics
from ddpm_jax.config import Config, Training, to_json
from ddpm_jax.data.digits import Digits
from ddpm_jax.models.basic_unet import BasicUNet
from ddpm_jax.runs import directory
from ddpm_jax.runs.checkpoints import Checkpoints
from ddpm_jax.samplers.dpm_solver_v3 import load
from ddpm_jax.statistics import main


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = Config(model=BasicUNet(image_size=8, channels=1), data=Digits(), training=Training(batch_size=8, steps=5))
    folder, params = tmp_path_factory.mktemp("run"), config.model.init(jax.random.key(0))
    with Checkpoints(folder) as checkpoints:
        saved = {"params": params, "ema_params": {"ema": params}, "opt_state": {"count": np.zeros(1)}}
        checkpoints.save(5, saved, to_json(config))
    return folder


def test_a_runs_statistics_are_left_beside_it(run, capsys):
    main(["--ckpt", str(run), "--images", "12", "--batch-size", "8", "--levels", "4", "--no-compilation-cache"])
    assert capsys.readouterr().out.strip() == str(run / "statistics.npz")
    found = load(run / "statistics.npz")
    assert found.l.shape == (4, 8, 8, 1)
    assert all(np.all(np.isfinite(table)) for table in found)


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"images": 1}, "--images must be at least 2"), ({"levels": 2}, "--levels must be at least 3")],
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        statistics.Estimation(**setting)


def test_more_images_than_there_are_is_refused(run):
    with pytest.raises(ValueError, match="more than there are: 1,797"):
        main(["--ckpt", str(run), "--images", "100000", "--no-compilation-cache"])


def test_the_corruption_toy_has_none(run):
    config = dataclasses.replace(directory.load_config(run, 5), objective=Corruption())
    with pytest.raises(ValueError, match="corruption toy"):
        statistics.diffusion_of(config, "statistics")
