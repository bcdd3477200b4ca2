"""train.py, sample.py and evaluate on conditions beside labels."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.commands import arrays, draw, one_line, run, small_main

from ddpm_jax import evaluate
from ddpm_jax.cli import sample
from ddpm_jax.data.batches import batch_at
from ddpm_jax.data.conditions import with_statistics
from ddpm_jax.data.values import scaled_values
from ddpm_jax.evaluation.network_batches import network_batches
from ddpm_jax.generation.generate import generate
from ddpm_jax.runs.sources import open_run
from ddpm_jax.runs.tasks import task_of

BRIGHTNESS = ("--config", "brightness", "--no-compilation-cache", "--training.steps", 4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of 4 steps of the recipe `brightness`."""
    folder = tmp_path_factory.mktemp("brightness") / "run"
    run(small_main, *BRIGHTNESS, "--workdir", folder, "--preview", "--checkpoint.every", 2)
    return folder


def test_a_run_keeps_the_statistics_of_its_conditions(trained):
    source = open_run(str(trained))
    images = source.spec.load_images()
    assert source.condition_values == images.condition_values
    assert 70 < source.condition_values.centre[0] < 85
    assert (trained / "samples" / "00000004.png").exists()


def test_resume_matches_an_uninterrupted_run(trained, tmp_path):
    options = (*BRIGHTNESS[:-1], 2, "--workdir", tmp_path, "--checkpoint.every", 2)
    run(small_main, *options)
    run(small_main, *options, "--training.steps", 4)
    for ours, theirs in zip(arrays(tmp_path, 4), arrays(trained, 4), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_resume_and_a_run_that_starts_from_another_keep_its_statistics(trained):
    source = open_run(str(trained))
    other = scaled_values("deviation", [(100.0, 50.0)], np.dtype(float))
    images = with_statistics(source.spec.load_images(), other)
    own = source.config
    training = dataclasses.replace(own.training, init_from=str(trained))
    started = dataclasses.replace(own, training=training)
    for config, step, expected in (
        (own, 0, other),
        (own, 4, source.condition_values),
        (started, 0, source.condition_values),
    ):
        prepared = task_of(config).prepare(config, trained, step, images)
        assert prepared.condition_values == expected


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
    np.savez(tmp_path / "other.npz", images=np.ones((3, 1)))
    cases = {
        (tmp_path / "wide.npy",): "(3, 2), but the network takes 1 numbers: give an array (n, 1).",
        (tmp_path / "other.npz",): "other.npz holds images: give an array `conditions`.",
        (tmp_path / "nowhere.npy",): "There is no file",
        (1, tmp_path / "wide.npy"): "--condition takes one file, or numbers alone.",
        ("nan",): "The condition has values that are not finite",
    }
    for condition, message in cases.items():
        line = one_line(capsys, sample.main, "--ckpt", trained, "--condition", *condition)
        assert message in line


def test_measures_use_the_conditions_of_the_reference_images(trained, tmp_path):
    out = tmp_path / "x.json"
    options = ("--num", 40, "--bits-num", 8, "--batch-size", 8, "--out", out)
    run(evaluate.main, "--ckpt", trained, "--measures", "kid", "loss", *options)
    assert np.isfinite(json.loads(out.read_text())["loss"])
    source = open_run(str(trained))
    batch = batch_at(source.spec.load_images(), 0, 0, 8)
    params = source.params("ema")
    [(_, x0, network)] = network_batches(source.spec, params, batch, 8, 0)
    t = jnp.full(8, 500, jnp.int32)
    expected = source.spec.model.apply(params, x0, t, {"vector": batch["vector"]})
    np.testing.assert_allclose(jax.jit(network)(x0, t), expected, atol=1e-5)
