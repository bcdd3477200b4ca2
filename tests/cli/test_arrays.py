"""train.py and sample.py on arrays of floats, of two channels, which are no squares."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import draw, fails, one_line, run, small_main
from helpers.images import load
from helpers.saved_runs import small_recipe
from PIL import Image

from ddpm_jax.cli import sample
from ddpm_jax.cli.evaluate_options import EvaluateOptions
from ddpm_jax.config import Log
from ddpm_jax.data.arrays import Arrays
from ddpm_jax.data.loading import InMemory
from ddpm_jax.data.scaled_images import ScaledImages
from ddpm_jax.evaluate import check_measures
from ddpm_jax.generation.generate import generate
from ddpm_jax.runs import grids, loop
from ddpm_jax.runs.model_card import write_card
from ddpm_jax.runs.sources import open_run

pytestmark = [pytest.mark.runs, pytest.mark.usefixtures("without_kernels", "without_curves")]

SHAPE = (8, 12, 2)
ARRAYS = np.random.default_rng(0).normal((0.0, 300.0), (1.0, 20.0), (32, *SHAPE))
COMMAND = ("--config", "arrays", "--no-compilation-cache", "--training.steps", 4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of 4 steps of the recipe `arrays`, beside its data x.npy."""
    folder = tmp_path_factory.mktemp("arrays")
    np.save(folder / "x.npy", ARRAYS)
    options = ("--data.path", folder / "x.npy", "--workdir", folder / "run", "--preview")
    run(small_main, *COMMAND, *options)
    return folder / "run"


def test_a_run_keeps_the_statistics_of_its_data(trained, tmp_path):
    source = open_run(str(trained))
    path = str(trained.parent / "x.npy")
    data = Arrays(path=path, scaling="deviation").load(SHAPE[:2], SHAPE[2])
    assert source.values == data.values
    np.testing.assert_allclose(source.values.centre, [0, 300], atol=2)
    for name in ("preview/data", "preview/noise", "samples/00000004"):
        assert load(trained / f"{name}.png").shape[-1] >= 3, name
    write_card(tmp_path, source, "ema", "me/wind", "DDPMScheduler")
    card = (tmp_path / "README.md").read_text()
    assert "2-channel images of 8 x 12 pixels" in card
    assert f"- values of the data: {data.values.describe()}" in card


def test_samples_have_the_unit_and_the_type_of_the_data(trained, tmp_path, capsys):
    draw(trained, "--num", 3, "--out", tmp_path / "x.npz", tmp_path / "x.png")
    printed = capsys.readouterr()
    assert "Pictures show 2 channels in false colours" in printed.err
    images = np.load(tmp_path / "x.npz")["images"]
    assert images.shape == (3, *SHAPE)
    assert images.dtype == np.float32
    source = open_run(str(trained))
    options = {"num_images": 3, "batch_size": 64, "seed": 0, "min_chunks": 20}
    x = generate(source.spec, source.params("ema"), to_values=np.asarray, **options)[0]
    np.testing.assert_allclose(images, source.values.to_values(x), rtol=1e-5, atol=1e-4)
    assert np.abs(x).max() > 1
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.mode == "RGB"


def test_pictures_show_the_chosen_channels(trained, tmp_path, capsys):
    draw(trained, "--num", 1, "--channels", 1, "--out", tmp_path / "x.npz", tmp_path / "one")
    assert "Pictures show channel 1 in grey" in capsys.readouterr().err
    source = open_run(str(trained))
    pictures = source.values.show(np.load(tmp_path / "x.npz")["images"])
    np.testing.assert_array_equal(load(tmp_path / "one" / "00000.png"), pictures[0, ..., 1])
    config = dataclasses.replace(
        source.config, log=dataclasses.replace(source.config.log, channels=(1, 0, 1))
    )
    images = ScaledImages(InMemory(ARRAYS), source.values)
    grid = grids.samples(config, source.params("ema"), images)
    every = grids.samples(source.config, source.params("ema"), images)
    np.testing.assert_array_equal(grid, every[..., [1, 0, 1]])
    for name, row in grids.prediction_rows(config, source.params("ema"), images):
        assert row.shape[-1] == 3, name


def test_channels_that_do_not_fit_end_in_one_line(trained, tmp_path, capsys):
    for channels in ((2,), (0, 1)):
        arguments = ("--ckpt", trained, "--out", tmp_path / "x.png", "--channels", *channels)
        line = one_line(capsys, sample.main, *arguments)
        assert "--channels must name one channel, or three for red, green and blue, among" in line
    with pytest.raises(ValueError, match=r"log.channels must name one channel, .* 0\.\.0, not 1"):
        small_recipe(log=Log(channels=(1,)))


def test_data_that_does_not_fit_ends_a_run_in_one_line(trained, tmp_path, capsys):
    np.save(tmp_path / "x.npy", 2 * ARRAYS)
    options = ("--data.path", tmp_path / "x.npy", "--workdir", trained)
    last = fails(capsys, small_main, *COMMAND, *options).splitlines()[-1]
    assert (
        "error: The values of this data are not in the unit of those of the trained netwo" in last
    )
    options = ("--data.path", tmp_path / "x.npy", "--workdir", tmp_path, "--evaluation.every", 2)
    last = fails(capsys, small_main, *COMMAND, *options).splitlines()[-1]
    assert "error: Samples are compared with training images of 8 bits alone: leave out" in last


def test_measures_of_8_bit_images_are_refused(trained):
    values = open_run(str(trained)).values
    check_measures(values, EvaluateOptions(measures=("loss", "speed")))
    with pytest.raises(ValueError, match=r"no 8-bit levels, which frechet kid nearest need: give"):
        check_measures(values, EvaluateOptions())


def test_clipping_of_standardised_values_is_refused():
    data = Arrays(path="x.npz", scaling="deviation")
    config = small_recipe(data=dataclasses.replace(data, scaling="range"))
    for sampling in (
        config.sampling,
        dataclasses.replace(config.sampling, clip_x0=False, dynamic_threshold=0.9),
    ):
        with pytest.raises(ValueError, match=r"to which sampling clips: .*--sampling.no-clip-x0"):
            dataclasses.replace(config, data=data, sampling=sampling)
    unclipped = dataclasses.replace(config.sampling, clip_x0=False)
    assert dataclasses.replace(config, data=data, sampling=unclipped).data == data


def test_images_of_few_levels_are_named_with_the_setting_for_them(tmp_path, capsys):
    def load_run(images, step=0, **options):
        np.savez(tmp_path / "x.npz", images=images)
        data = Arrays(path=str(tmp_path / "x.npz"), **options)
        loop.load(small_recipe(data=data), tmp_path, step)
        return capsys.readouterr().err

    levels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), dtype=np.uint8)
    expected = "x.npz have levels from 0 to 1 of 0 to 255, which the network sees as -1 to -0.992: "
    advice = f"{expected}unless that is meant, use --data arrays with --data.scaling range.\n"
    assert advice in load_run(levels % 2)
    # The values are in order, or the run has told it at its start.
    for others in (
        load_run(levels),
        load_run(levels % 2, scaling="range"),
        load_run(levels % 2, 4),
    ):
        assert "network sees" not in others
