"""Training from weights that are there: of a run, and of a net in the layout of diffusers."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from helpers.commands import TINY, one_line, run, train_main
from helpers.pretrained import fixture

from ddpm_jax.cli import arguments
from ddpm_jax.pretrained.unet_folder import load_net
from ddpm_jax.runs.initial_weights import first_params, with_net_of
from ddpm_jax.runs.metrics import read_metrics
from ddpm_jax.runs.sources import open_any

DIGITS = arguments.load_recipe("digits", train.CONFIGS)


@pytest.fixture
def theirs(tmp_path):
    """A small net of diffusers that predicts v, with its scheduler."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    fixture("ddpm", folder)
    said = {"_class_name": "DDPMScheduler", "prediction_type": "v_prediction"}
    (folder / "scheduler_config.json").write_text(json.dumps(said))
    return folder


def test_the_net_and_what_it_was_trained_for_come_along(theirs):
    config = with_net_of(DIGITS, str(theirs))
    net, params = load_net(theirs)
    assert (config.model, config.objective.target, config.objective.schedule) == (net, "v", "linear")
    assert (config.data, config.optimizer, config.ema) == (DIGITS.data, DIGITS.optimizer, DIGITS.ema)
    jax.tree.map(np.testing.assert_array_equal, first_params(config, jax.random.key(0)), params)


def test_the_losses_stay_the_recipes(theirs):
    ours = dataclasses.replace(DIGITS.objective, weighting="min_snr", times="importance")
    config = with_net_of(dataclasses.replace(DIGITS, objective=ours), str(theirs))
    assert (config.objective.weighting, config.objective.times) == ("min_snr", "importance")


def test_a_learned_variance_brings_the_bound_that_trains_it(theirs):
    said = {"_class_name": "DDPMScheduler", "variance_type": "learned_range"}
    (theirs / "scheduler_config.json").write_text(json.dumps(said))
    net = json.loads((theirs / "config.json").read_text())
    (theirs / "config.json").write_text(json.dumps(net | {"out_channels": 2}))
    config = with_net_of(DIGITS, str(theirs))
    assert (config.objective.variance, config.objective.bound) == ("learned_range", "hybrid")
    assert config.model.learned_variance


def test_a_walk_of_more_steps_than_there_are_timesteps_is_cut(theirs):
    said = {"_class_name": "DDPMScheduler", "num_train_timesteps": 50, "beta_end": 0.5}
    (theirs / "scheduler_config.json").write_text(json.dumps(said))
    assert with_net_of(DIGITS, str(theirs)).sampling.steps is None


def test_without_it_weights_are_fresh():
    fresh = first_params(DIGITS, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, fresh, DIGITS.model.init(jax.random.key(0)))


SMALL = "--config digits --no-compilation-cache --training.batch-size 16 --checkpoint.every 2 --log.samples 0".split()


def test_a_run_starts_from_them_and_goes_on_from_itself(theirs, tmp_path):
    args = [*SMALL, "--optimizer.learning-rate", 1e-9, "--optimizer.warmup-steps", 0, "--log.every", 1]
    run(train_main, *args, "--init-from", theirs, "--training.steps", 2, "--workdir", tmp_path / "run")
    params, (_, wanted) = open_any(str(tmp_path / "run")).params("raw"), load_net(theirs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), params, wanted)
    run(train_main, *args, "--init-from", theirs, "--training.steps", 4, "--workdir", tmp_path / "run")
    assert [line["step"] for line in read_metrics(tmp_path / "run/metrics.jsonl")] == [1, 2, 3, 4]


def test_another_net_is_refused_in_one_line(theirs, tmp_path, capsys):
    message = one_line(
        capsys, train_main, *SMALL, "--init-from", theirs, "--model.norm-eps", 0.1, "--workdir", tmp_path / "run"
    )
    assert "is another one than this recipe's: model.norm_eps differ" in message
    assert not (tmp_path / "run").exists()
    message = one_line(capsys, train_main, *SMALL, "--model", "basic_unet", "--init-from", theirs)
    assert "--init-from says which network it is: leave --model out" in message
    message = one_line(capsys, train_main, *SMALL, "--init-from", tmp_path / "none", "--workdir", tmp_path / "run")
    assert "neither a folder here nor owner/name" in message


def test_a_run_is_a_source_too(tmp_path):
    run(train_main, *TINY, "--training.steps", 1, "--workdir", tmp_path / "first")
    config = with_net_of(DIGITS, str(tmp_path / "first"))
    assert config.model == open_any(str(tmp_path / "first")).recipe.model
    wanted = open_any(str(tmp_path / "first")).params("ema")
    jax.tree.map(np.testing.assert_array_equal, first_params(config, jax.random.key(0)), wanted)
