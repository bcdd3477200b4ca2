"""`python -m ddpm_jax.statistics`: the file that it writes to a run, and the errors it raises."""

import io

import numpy as np
import pytest
from PIL import Image

from ddpm_jax import statistics
from ddpm_jax.data.decode import decode_image
from ddpm_jax.evaluation import solver_statistics
from ddpm_jax.evaluation.solver_statistics import levels
from ddpm_jax.samplers.dpm_solver_v3 import load

pytestmark = pytest.mark.runs


def test_statistics_are_written_to_the_run(run, config, capsys):
    size = ["--images", "12", "--batch-size", "8", "--levels", "8"]
    statistics.main(["--ckpt", str(run), *size, "--no-compilation-cache"])
    assert capsys.readouterr().out.strip() == str(run / "statistics.npz")
    loaded = load(run / "statistics.npz")
    assert loaded.l.shape == (len(levels(config.objective.noise_schedule, 8)), 4, 4, 1)
    assert all(np.all(np.isfinite(table)) for table in loaded)


def test_an_output_that_cannot_be_written_is_found_before_the_estimate(run, monkeypatch, tmp_path):
    monkeypatch.setattr(statistics, "draw_batches", lambda *_: pytest.fail("estimated"))
    args = ["--ckpt", str(run), "--no-compilation-cache", "--out", str(tmp_path)]
    with pytest.raises(IsADirectoryError, match="is a directory: give the name of a file"):
        statistics.main(args)


def test_an_image_of_too_many_pixels_names_no_option_of_training(run, monkeypatch):
    png = io.BytesIO()
    Image.new("L", (8, 8)).save(png, "PNG")

    def draw(*_):
        decode_image(png, "a", 8, 1, "crop", max_pixels=10)

    monkeypatch.setattr(statistics, "draw_batches", draw)
    with pytest.raises(ValueError, match=r"above 10 pixels\): replace or remove it\.$"):
        statistics.main(["--ckpt", str(run), "--no-compilation-cache"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"images": 1}, "--images must be at least 2"),
        ({"levels": 2}, "--levels must be at least 3"),
    ],
)
def test_options_out_of_range_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        statistics.StatisticsOptions(**setting)


def test_more_images_than_the_data_has_are_refused(config, params):
    message = "takes 100,032 images in batches of 64, but the data has 1,797: lower"
    with pytest.raises(ValueError, match=message):
        solver_statistics.draw_batches(config, params, 100_000, batch_size=64, seed=0)
