"""train.py, sample.py and evaluate on conditions beside labels."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import nets
from helpers.commands import arrays, draw, one_line, run, small_main
from helpers.recipes.upscale import config as UPSCALE
from helpers.saved_runs import save_run

from ddpm_jax import evaluate
from ddpm_jax.cli import sample
from ddpm_jax.cli.condition_options import ConditionOptions
from ddpm_jax.cli.evaluate_options import EvaluateOptions
from ddpm_jax.data.batches import batch_at
from ddpm_jax.data.digits import Digits
from ddpm_jax.data.loading import InMemory
from ddpm_jax.data.pixels import to_uint8
from ddpm_jax.data.values import LEVELS
from ddpm_jax.evaluation.network_batches import network_batches
from ddpm_jax.evaluation.solver_statistics import draw_batches
from ddpm_jax.figures import image_grids
from ddpm_jax.generation.generate import generate
from ddpm_jax.runs import grids, loop
from ddpm_jax.runs.sources import open_run
from ddpm_jax.runs.tasks import task_of

pytestmark = [
    pytest.mark.runs,
    pytest.mark.usefixtures("without_kernels", "without_curves", "shared_steps", "shared_digits"),
]

BRIGHTNESS = (
    *("--config", "brightness", "--no-compilation-cache", "--training.steps", 4),
    *("--checkpoint.every", 2),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of 4 steps of the recipe `brightness`."""
    folder = tmp_path_factory.mktemp("brightness") / "run"
    run(small_main, *BRIGHTNESS, "--workdir", folder)
    return folder


def test_a_run_keeps_the_statistics_of_its_conditions(trained):
    source = open_run(str(trained))
    images = source.spec.load_images()
    assert source.condition_values == images.condition_values
    assert 70 < source.condition_values.centre[0] < 85
    assert (trained / "samples" / "00000004.png").exists()


def test_resume_and_a_run_that_starts_from_another_keep_its_statistics(trained, monkeypatch):
    source = open_run(str(trained))
    load = Digits.load

    def darker(*args):
        return InMemory(load(*args).images // 2)

    monkeypatch.setattr(Digits, "load", darker)
    own = source.config
    training = dataclasses.replace(own.training, init_from=str(trained))
    started = dataclasses.replace(own, training=training)
    for config, step in ((own, 4), (started, 0)):
        assert loop.load(config, trained, step).condition_values == source.condition_values
    assert loop.load(own, trained, 0).condition_values.centre[0] < 45


def test_resume_with_a_vector_matches_an_uninterrupted_run(trained, tmp_path, capsys):
    """Continue the run from step 2."""
    workdir = shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "4")
    run(small_main, *BRIGHTNESS, "--workdir", workdir, "--log.samples", 0)
    assert "2 steps from 2 to 4" in capsys.readouterr().out
    for uninterrupted, resumed in zip(arrays(trained, 4), arrays(workdir, 4), strict=True):
        np.testing.assert_array_equal(uninterrupted, resumed)


def test_measures_and_statistics_compute_no_scale_of_their_own(trained, monkeypatch):
    """All images of this split have one brightness, so their own deviation would be 0."""
    white = InMemory(np.full((8, 8, 8, 1), 255, np.uint8))
    monkeypatch.setattr(Digits, "load", lambda *_: white)
    source = open_run(str(trained))
    images, _ = evaluate.reference_of(source, EvaluateOptions())
    expected = source.condition_values.to_network(np.full((8, 1), 255.0))
    np.testing.assert_array_equal(images.read(np.arange(8))["vector"], expected)
    size = (source.params("ema"), 8, 8, 0)
    draw_batches(source.config, *size, condition_values=source.condition_values)


def test_numbers_and_files_are_conditions_in_the_unit_of_the_data(trained, tmp_path):
    np.save(tmp_path / "rows.npy", [[30.0], [90.0], [60.0]])
    np.savez(tmp_path / "rows.npz", conditions=np.array([[30], [90], [60]]))
    drawn = {}
    for name in ("rows.npy", "rows.npz"):
        draw(trained, "--condition", tmp_path / name, "--out", tmp_path / "x.npz")
        drawn[name] = np.load(tmp_path / "x.npz")["images"]
    draw(trained, "--condition", 30, 90, 60, "--out", tmp_path / "x.npz")
    ours = np.load(tmp_path / "x.npz")["images"]
    assert ours.shape == (3, 8, 8, 1)
    for images in drawn.values():
        np.testing.assert_array_equal(images, ours)
    source = open_run(str(trained))
    vector = source.condition_values.to_network(np.array([[30], [90], [60]]))
    options = {"num_images": 3, "batch_size": 64, "seed": 0, "min_chunks": 20}
    expected = generate(source.spec, source.params("ema"), conditions={"vector": vector}, **options)
    np.testing.assert_array_equal(ours, expected[0])


def test_a_condition_that_does_not_fit_ends_in_one_line(trained, tmp_path, capsys):
    np.save(tmp_path / "wide.npy", np.ones((3, 2)))
    np.savez(tmp_path / "other.npz", rows=np.ones((3, 1)))
    (tmp_path / "rows.csv").write_text("60\n")
    cases = {
        (tmp_path / "wide.npy",): "wide.npy is float64 (3, 2), but the network takes 1 numbers",
        (tmp_path / "rows.csv",): "rows.csv is no .npy or .npz: give 1 numbers for each image",
        (tmp_path / "other.npz",): "other.npz holds rows: give an array `conditions`.",
        (tmp_path / "nowhere.npy",): "There is no file",
        (1, tmp_path / "wide.npy"): "no file 1, and this network is conditioned on 1 numbers for",
        ("nan",): "--condition has values that are not finite",
        (60, "--condition-noise", 0.2): "condition_noise is for a condition image, and",
        (60, 70, 80, "--num", 2): "--num 2 leaves out some of 3 conditions: raise --num.",
    }
    for condition, message in cases.items():
        line = one_line(capsys, sample.main, "--ckpt", trained, "--condition", *condition)
        assert message in line


def test_a_network_without_a_condition_takes_none():
    given = ConditionOptions(condition=("5",))
    with pytest.raises(ValueError, match="takes no such condition: leave out --condition"):
        given.conditions(nets.SMALLEST, LEVELS)
    assert ConditionOptions().conditions(nets.SMALLEST, LEVELS) is None


def test_measures_use_the_conditions_of_the_reference_images(trained, tmp_path):
    out = tmp_path / "x.json"
    options = ("--num", 40, "--bits-num", 8, "--batch-size", 8, "--out", out)
    run(evaluate.main, "--ckpt", trained, "--measures", "kid", "loss", "bits", *options)
    result = json.loads(out.read_text())
    assert np.isfinite([result["loss"], result["bits_per_dim"]]).all()
    assert result["conditions"] == "those of reference images"
    assert "conditions: those of reference images, seed 0" in result["samples"]
    source = open_run(str(trained))
    batch = batch_at(source.spec.load_images(), 0, 0, 8)
    params = source.params("ema")
    [(_, x0, network)] = network_batches(source.spec, params, batch, 8, 0)
    t = jnp.full(8, 500, jnp.int32)
    condition = {"vector": jnp.asarray(batch["vector"])}
    expected = nets.apply(source.spec.model, params, x0, t, condition)
    np.testing.assert_allclose(jax.jit(network)(x0, t), expected, atol=1e-5)


def test_a_reference_without_the_labels_of_the_network_is_refused(tmp_path, capsys):
    model = dataclasses.replace(UPSCALE.model, num_classes=10)
    recipe = dataclasses.replace(UPSCALE, model=model)
    folder = save_run(tmp_path / "run", recipe, steps=(4,))
    np.savez(tmp_path / "x.npz", images=np.zeros((9, 8, 8, 1), np.uint8))
    args = ("--ckpt", folder, "--against", tmp_path / "x.npz", "--num", 8)
    assert "for 10 classes, but this data has no labels" in one_line(capsys, evaluate.main, *args)


@pytest.fixture(scope="module")
def upscaler(tmp_path_factory) -> Path:
    """A run of the recipe `upscale`, with random parameters."""
    return save_run(tmp_path_factory.mktemp("upscale") / "run", UPSCALE, steps=(4,))


def test_the_loss_of_a_recipe_takes_its_condition_images():
    images = UPSCALE.load_images()
    (batch,) = loop.batches(UPSCALE, images, 0, 1)
    loss = task_of(UPSCALE).loss(UPSCALE)
    assert jax.eval_shape(loss, UPSCALE.model.shapes(), batch.pop("key"), batch).shape == (16,)


def test_grids_show_a_condition_image_its_sample_and_the_original(upscaler):
    source = open_run(str(upscaler))
    images = source.spec.load_images()
    rows = grids.samples(source.config, source.params("ema"), images)
    assert rows.shape == (2, 8, 24, 3)
    batch = images.read(np.arange(2))
    np.testing.assert_array_equal(rows[..., 16:, :], batch["image"].repeat(3, -1))
    given = to_uint8(batch["condition_image"])
    np.testing.assert_array_equal(rows[..., :8, :], given.repeat(3, -1))


def test_small_images_and_samples_of_another_network_are_conditions(upscaler, tmp_path, capsys):
    small = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 1), dtype=np.uint8)
    image_grids.save_images(small, tmp_path / "small")
    image_grids.save_images(small, tmp_path / "samples.npz")
    files = [tmp_path / "small" / f"0000{i}.png" for i in range(3)]
    drawn = []
    for given in (files, [tmp_path / "samples.npz"]):
        options = ("--condition-noise", 0.2, "--guidance-scale", 2, "--out", tmp_path / "x.npz")
        draw(upscaler, "--condition", *given, *options)
        drawn.append(np.load(tmp_path / "x.npz")["images"])
    assert drawn[0].shape == (3, 8, 8, 1)
    np.testing.assert_array_equal(*drawn)
    arguments = ("--ckpt", upscaler, "--condition", files[0], "--condition-noise", 0.4)
    line = one_line(capsys, sample.main, *arguments)
    assert "trained with noise up to 0.3 on its condition image: lower condition_noise" in line
    line = one_line(capsys, sample.main, "--ckpt", upscaler, "--condition", tmp_path / "no.png")
    expected = "and this network is conditioned on images of 1 channels, in files or in an .npy: "
    assert f"There is no file {tmp_path / 'no.png'}, {expected}give these" in line
    line = one_line(capsys, sample.main, "--ckpt", upscaler, "--condition", 5)
    assert f"There is no file 5, {expected}give these to --condition." in line
