"""Initialise training from a run and from a model in the diffusers layout."""

import dataclasses
import json

import jax
import numpy as np
import optax
import pytest
from helpers.commands import CONFIGS
from helpers.pretrained import fixture
from helpers.saved_runs import NET, random_params, save_run, small_recipe

from ddpm_jax.cli.recipes import load_recipe
from ddpm_jax.data.loading import InMemory
from ddpm_jax.data.scaled_images import ScaledImages
from ddpm_jax.data.values import scaled_values
from ddpm_jax.devices import parallel
from ddpm_jax.devices.parallel import Parallel
from ddpm_jax.pretrained.unet_folder import load_net
from ddpm_jax.runs import directory, loop
from ddpm_jax.runs.initial_weights import (
    first_params,
    warn_of_other_values,
    with_pretrained_network,
)

DIGITS = load_recipe("digits", CONFIGS)
KEY = jax.random.key(0)
SHORT = np.dtype(np.int16)


@pytest.fixture
def pretrained(tmp_path):
    """A small diffusers model that predicts v, with its scheduler."""
    folder = tmp_path / "pretrained"
    folder.mkdir()
    fixture("ddpm", folder)
    scheduler = {"_class_name": "DDPMScheduler", "prediction_type": "v_prediction"}
    (folder / "scheduler_config.json").write_text(json.dumps(scheduler))
    return folder


def assert_same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_network_schedule_and_target_come_from_the_pretrained_model(pretrained):
    config = with_pretrained_network(DIGITS, str(pretrained))
    net, params = load_net(pretrained)
    assert config.model == net
    assert config.objective.target == "v"
    assert config.objective.schedule == "linear"
    assert config.data == DIGITS.data
    assert config.optimizer == DIGITS.optimizer
    assert config.ema == DIGITS.ema
    assert_same(first_params(config, KEY), params)


def test_values_of_another_scale_are_named(pretrained, capsys):
    config = with_pretrained_network(DIGITS, str(pretrained))
    levels = InMemory(np.zeros((1, 8, 8, 1), np.uint8))
    warn_of_other_values(config, levels)
    other = ScaledImages(levels, scaled_values("range", [(0.0, 1.0)], SHORT))
    warn_of_other_values(DIGITS, other)
    assert capsys.readouterr().err == ""
    warn_of_other_values(config, other)
    expected = "was trained on other values (levels 0 to 255) than these (int16, middle and"
    assert expected in capsys.readouterr().err


def test_the_losses_stay_as_in_the_recipe(pretrained):
    ours = dataclasses.replace(
        DIGITS.objective, weighting="min_snr", timestep_sampling="importance"
    )
    config = with_pretrained_network(dataclasses.replace(DIGITS, objective=ours), str(pretrained))
    assert config.objective.weighting == "min_snr"
    assert config.objective.timestep_sampling == "importance"


def test_a_learned_variance_brings_the_loss_that_trains_it(pretrained):
    scheduler = {"_class_name": "DDPMScheduler", "variance_type": "learned_range"}
    (pretrained / "scheduler_config.json").write_text(json.dumps(scheduler))
    net = json.loads((pretrained / "config.json").read_text())
    (pretrained / "config.json").write_text(json.dumps(net | {"out_channels": 2}))
    config = with_pretrained_network(DIGITS, str(pretrained))
    assert config.objective.variance == "learned_range"
    assert config.objective.loss_kind == "hybrid"
    assert config.model.learned_variance


def test_more_sampling_steps_than_timesteps_become_all_timesteps(pretrained):
    scheduler = {"_class_name": "DDPMScheduler", "num_train_timesteps": 50, "beta_end": 0.5}
    (pretrained / "scheduler_config.json").write_text(json.dumps(scheduler))
    assert with_pretrained_network(DIGITS, str(pretrained)).sampling.steps is None


def test_without_init_from_parameters_are_drawn():
    assert_same(first_params(small_recipe(), KEY), NET.init(KEY))


def test_with_fsdp_parameters_are_drawn_where_they_are_kept(monkeypatch):
    monkeypatch.setattr(parallel, "MIN_SHARDED_SIZE", 1)
    config = dataclasses.replace(small_recipe(), parallel=Parallel(fsdp=4))
    params = first_params(config, KEY)
    shardings = parallel.state_shardings(params, 4)
    assert jax.tree.map(lambda leaf: leaf.sharding, params) == shardings
    assert_same(params, NET.init(KEY))


def test_training_starts_from_the_pretrained_weights_and_resumes_from_the_run(pretrained, tmp_path):
    config = with_pretrained_network(DIGITS, str(pretrained))
    _, params = load_net(pretrained)
    state = loop.first_state(config, optax.sgd(0.1))
    assert_same(state.params, params)
    assert_same(state.ema_params["ema"], params)
    save_run(tmp_path / "run", config)
    assert directory.resume(with_pretrained_network(DIGITS, str(pretrained)), tmp_path / "run") == 8


def test_another_network_is_refused(pretrained):
    config = with_pretrained_network(DIGITS, str(pretrained))
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, norm_eps=0.1))
    message = r"differs from the recipe's in model\.norm_eps: leave"
    with pytest.raises(ValueError, match=message):
        first_params(other, KEY)
    same = dataclasses.replace(config, model=dataclasses.replace(config.model, dropout=0.1))
    assert_same(first_params(same, KEY), load_net(pretrained)[1])


def test_training_starts_from_the_average_of_a_run(tmp_path):
    save_run(tmp_path / "first", small_recipe())
    config = with_pretrained_network(DIGITS, str(tmp_path / "first"))
    assert config.model == NET
    assert_same(first_params(config, KEY), random_params(NET, 8, "ema"))
