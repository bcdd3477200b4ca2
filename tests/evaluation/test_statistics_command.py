"""`python -m ddpm_jax.statistics`: the file it leaves beside a run, and what it refuses."""

import numpy as np
import pytest

from ddpm_jax import statistics
from ddpm_jax.evaluation import solver_statistics
from ddpm_jax.evaluation.solver_statistics import levels
from ddpm_jax.samplers.dpm_solver_v3 import load


def test_a_runs_statistics_are_left_beside_it(run, config, capsys):
    length = ["--images", "12", "--batch-size", "8", "--levels", "8"]
    statistics.main(["--ckpt", str(run), *length, "--no-compilation-cache"])
    assert capsys.readouterr().out.strip() == str(run / "statistics.npz")
    found = load(run / "statistics.npz")
    assert found.l.shape == (len(levels(config.objective.noise_schedule, 8)), 4, 4, 1)
    assert all(np.all(np.isfinite(table)) for table in found)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"images": 1}, "--images must be at least 2"),
        ({"levels": 2}, "--levels must be at least 3"),
    ],
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        statistics.StatisticsOptions(**setting)


def test_more_images_than_there_are_is_refused(config, params):
    with pytest.raises(ValueError, match="more than there are: 1,797"):
        solver_statistics.draw_statistics(config, params, 100_000, batch_size=64, seed=0)
