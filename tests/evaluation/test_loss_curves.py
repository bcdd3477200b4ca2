"""The loss of a run beside that of its recipe: windows, spreads, and the verdict."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import CONFIGS
from PIL import Image

from ddpm_jax import evaluate
from ddpm_jax.cli.evaluate_loss import compare_loss
from ddpm_jax.cli.recipes import load_recipe, loss_curves
from ddpm_jax.config import config_to_json
from ddpm_jax.data.folder import Folder
from ddpm_jax.evaluation.loss_curves import (
    FALSE_ALARMS,
    LossCurve,
    compare,
    describe,
    find_curve,
    make_curve,
    to_json,
)
from ddpm_jax.runs.checkpoints import CheckpointWriter
from ddpm_jax.runs.metrics import METRICS
from ddpm_jax.runs.sources import RunSource
from ddpm_jax.settings_json import to_json as settings
from ddpm_jax.training.optimizer import Optimizer

OFFSETS = np.arange(8) / 10


def records(seed, last=130, scale=1.0, spread=0.1):
    """Losses at every second step. Band i has the mean 1 + i / 10, scaled, and this spread."""
    rng = np.random.default_rng(seed)
    rows = 1 + OFFSETS + spread * rng.standard_normal((last // 2, 8))
    return [
        {"step": 2 * i + 2, "loss": 1.0, "loss_bands": (scale * row).tolist()}
        for i, row in enumerate(rows)
    ]


def test_windows_have_the_mean_and_the_spread_of_their_records():
    logged = records(0)
    logged[3]["loss_bands"][5] = None
    curve = make_curve([{"step": 1, "kid": 0.1}, *logged])
    # The window to step 10 has four values in band 5, which are too few.
    assert curve.ends.tolist() == [20, 50, 100]
    inside = np.array([each["loss_bands"] for each in logged if 20 < each["step"] <= 50], float)
    np.testing.assert_allclose(curve.mean[1], inside.mean(0))
    np.testing.assert_allclose(curve.spread[1], inside.std(0, ddof=1))
    np.testing.assert_array_equal(curve.records[:2], [[5] * 8, [15] * 8])


def test_a_run_that_has_logged_too_little_is_refused():
    for logged in ([], records(0, last=8), [{"step": 10, "loss": 1.0}]):
        with pytest.raises(ValueError, match="too few losses by bands"):
            make_curve(logged)


def test_the_last_common_window_is_compared():
    recipe = make_curve(records(0, last=60))
    verdict = compare(recipe, make_curve(records(1)))
    assert not verdict.outside.any()
    line = describe("toy", verdict, 1000)
    assert line.startswith("The loss agrees with that of recipe toy, steps 21 to 50: at most ")
    assert line.count("standard errors") == 1
    wrong = records(1)
    for each in wrong:
        each["loss_bands"][7] *= 1.3
        each["loss_bands"][0] *= 0.7
    verdict = compare(recipe, make_curve(wrong))
    line = describe("toy", verdict, 1000)
    assert line.startswith("The loss differs from that of recipe toy, steps 21 to 50: ")
    assert "standard errors below at t from 0 to 124 (bound " in line
    assert "standard errors above at t from 875 to 999 (bound " in line
    assert line.count("standard errors") == 2
    later = recipe._replace(ends=np.array([100, 200, 500]))
    with pytest.raises(ValueError, match="those to 100, 200, 500: train it longer"):
        compare(later, make_curve(records(1, last=60)))


def test_the_first_window_of_a_curve_starts_after_the_window_before_it():
    """Earlier windows may have too few records."""
    recipe, ours = (make_curve(records(seed)[40:]) for seed in (0, 1))
    assert recipe.ends.tolist() == [100]
    assert "toy, steps 51 to 100: " in describe("toy", compare(recipe, ours), 1000)


def random_curve(rng, n, bias=0.0):
    rows = bias + rng.standard_normal((n, 8))
    return LossCurve(
        np.array([10]), rows.mean(0)[None], rows.std(0, ddof=1)[None], np.full((1, 8), n)
    )


@pytest.mark.parametrize(("n", "m"), [(5, 5), (5, 50), (50, 50)])
def test_at_most_one_correct_run_in_a_hundred_differs(n, m):
    rng = np.random.default_rng(0)
    pairs = [(random_curve(rng, n), random_curve(rng, m)) for _ in range(2000)]
    rate = np.mean([compare(*pair).outside.any() for pair in pairs])
    assert rate < 1.5 * FALSE_ALARMS
    assert rate > 0 or n < 50


def test_a_bias_of_five_standard_errors_is_seen_in_most_runs():
    rng = np.random.default_rng(1)
    bias = 5 * np.sqrt(2 / 50)
    pairs = [(random_curve(rng, 50), random_curve(rng, 50, bias)) for _ in range(100)]
    assert np.mean([compare(*pair).outside for pair in pairs]) > 0.9


def test_the_recipe_is_found_by_the_settings_of_the_loss(config):
    curve = to_json(make_curve(records(0)), settings(config))
    other = dataclasses.replace(config, training=dataclasses.replace(config.training, seed=5))
    name, found = find_curve(other, {"toy": curve})
    assert name == "toy"
    np.testing.assert_allclose(found.mean, make_curve(records(0)).mean, rtol=1e-3)
    # A curve that is older than a setting of the data.
    del curve["config"]["data"]["reduction"]
    assert find_curve(other, {"toy": curve})[0] == "toy"
    # Another curve, of images in a folder: the folder is not kept.
    of_folder = dataclasses.replace(config, data=Folder(path="/home/me/cats"))
    folder_curve = to_json(make_curve(records(0)), settings(of_folder))
    assert "path" not in folder_curve["config"]["data"]
    curves = {"cats": folder_curve, "toy": curve}
    assert find_curve(other, curves)[0] == "toy"
    elsewhere = dataclasses.replace(of_folder, data=Folder(path="/tmp/cats"))
    assert find_curve(elsewhere, curves)[0] == "cats"
    other = dataclasses.replace(config, training=dataclasses.replace(config.training, batch_size=4))
    message = r"\(toy, the nearest, differs in training\.batch_size\): recipes with a curve are toy"
    with pytest.raises(ValueError, match=message):
        find_curve(other, {"toy": curve})


@pytest.mark.parametrize("decay", ["constant", "cosine"])
def test_the_length_of_a_run_matters_only_if_its_learning_rate_falls(config, decay):
    config = dataclasses.replace(config, optimizer=Optimizer(decay=decay))
    curve = to_json(make_curve(records(0)), settings(config))
    steps = config.training.steps + 100
    longer = dataclasses.replace(config, training=dataclasses.replace(config.training, steps=steps))
    if decay == "constant":
        assert find_curve(longer, {"toy": curve})[0] == "toy"
    else:
        with pytest.raises(ValueError, match=r"differs in training\.steps"):
            find_curve(longer, {"toy": curve})


def test_the_command_prints_the_verdict_and_draws_both_curves(tmp_path, config, capsys):
    (tmp_path / "curves").mkdir()
    curve = to_json(make_curve(records(0)), settings(config))
    (tmp_path / "curves" / "toy.json").write_text(json.dumps(curve))
    lines = [json.dumps(each) for each in records(1)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    compare_loss(RunSource(tmp_path, 100, config), None, recipes=tmp_path)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("The loss agrees with that of recipe toy, steps 51 to 100")
    assert printed[1] == str(tmp_path / "evaluation_loss.png")
    with Image.open(printed[1]) as picture:
        assert picture.width > 1000


def test_a_run_of_no_recipe_is_not_asked_to_train_longer(tmp_path, config):
    (tmp_path / "curves").mkdir()
    curve = to_json(make_curve(records(0)), settings(config))
    (tmp_path / "curves" / "toy.json").write_text(json.dumps(curve))
    other = dataclasses.replace(config, training=dataclasses.replace(config.training, batch_size=4))
    with pytest.raises(ValueError, match="No recipe with a loss curve has the settings"):
        compare_loss(RunSource(tmp_path, 1, other), None, recipes=tmp_path)


CURVES = loss_curves(CONFIGS)


def test_the_command_compares_a_run_with_its_recipe(tmp_path, capsys):
    """A run of the recipe digits, whose curve comes with the package."""
    config = load_recipe("digits", CONFIGS)
    with CheckpointWriter(tmp_path) as writer:
        writer.save(100, {"params": {"w": np.zeros(1)}}, config_to_json(config))
    lines = [json.dumps(each) for each in records(1)]
    (tmp_path / METRICS).write_text("\n".join(lines) + "\n")
    evaluate.main(["--ckpt", str(tmp_path), "--loss"])
    assert "that of recipe digits, steps " in capsys.readouterr().out


def test_some_recipes_have_curves():
    assert {"digits"} <= set(CURVES)
    assert not set(CURVES) - {Path(name).stem for name in CONFIGS.glob("*.py")}


@pytest.mark.parametrize("name", CURVES)
def test_a_curve_has_the_settings_of_its_recipe(name):
    recipe = load_recipe(name, CONFIGS)
    assert find_curve(recipe, {name: CURVES[name]})[0] == name
