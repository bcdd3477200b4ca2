"""Training from weights that are there: of a run, and of a net in the layout of diffusers."""

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
from ddpm_jax.pretrained.unet_folder import load_net
from ddpm_jax.runs import directory, loop
from ddpm_jax.runs.initial_weights import first_params, with_net_of

DIGITS = load_recipe("digits", CONFIGS)
KEY = jax.random.key(0)


@pytest.fixture
def theirs(tmp_path):
    """A small net of diffusers that predicts v, with its scheduler."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    fixture("ddpm", folder)
    said = {"_class_name": "DDPMScheduler", "prediction_type": "v_prediction"}
    (folder / "scheduler_config.json").write_text(json.dumps(said))
    return folder


def assert_same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_the_net_and_what_it_was_trained_for_come_along(theirs):
    config = with_net_of(DIGITS, str(theirs))
    net, params = load_net(theirs)
    assert (config.model, config.objective.target, config.objective.schedule) == (
        net,
        "v",
        "linear",
    )
    assert (config.data, config.optimizer, config.ema) == (
        DIGITS.data,
        DIGITS.optimizer,
        DIGITS.ema,
    )
    assert_same(first_params(config, KEY), params)


def test_the_losses_stay_the_recipes(theirs):
    ours = dataclasses.replace(
        DIGITS.objective, weighting="min_snr", timestep_sampling="importance"
    )
    config = with_net_of(dataclasses.replace(DIGITS, objective=ours), str(theirs))
    assert (config.objective.weighting, config.objective.timestep_sampling) == (
        "min_snr",
        "importance",
    )


def test_a_learned_variance_brings_the_bound_that_trains_it(theirs):
    said = {"_class_name": "DDPMScheduler", "variance_type": "learned_range"}
    (theirs / "scheduler_config.json").write_text(json.dumps(said))
    net = json.loads((theirs / "config.json").read_text())
    (theirs / "config.json").write_text(json.dumps(net | {"out_channels": 2}))
    config = with_net_of(DIGITS, str(theirs))
    assert (config.objective.variance, config.objective.loss_kind) == ("learned_range", "hybrid")
    assert config.model.learned_variance


def test_a_walk_of_more_steps_than_there_are_timesteps_is_cut(theirs):
    said = {"_class_name": "DDPMScheduler", "num_train_timesteps": 50, "beta_end": 0.5}
    (theirs / "scheduler_config.json").write_text(json.dumps(said))
    assert with_net_of(DIGITS, str(theirs)).sampling.steps is None


def test_without_it_weights_are_fresh():
    assert_same(first_params(small_recipe(), KEY), NET.init(KEY))


def test_a_run_starts_from_them_and_goes_on_from_itself(theirs, tmp_path):
    config = with_net_of(DIGITS, str(theirs))
    _, params = load_net(theirs)
    state = loop.first_state(config, optax.sgd(0.1))
    assert_same(state.params, params)
    assert_same(state.ema_params["ema"], params)
    save_run(tmp_path / "run", config)
    assert directory.resume(with_net_of(DIGITS, str(theirs)), tmp_path / "run") == 8


def test_another_net_is_refused(theirs):
    config = with_net_of(DIGITS, str(theirs))
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, norm_eps=0.1))
    message = r"is another one than this recipe's: model\.norm_eps differ"
    with pytest.raises(ValueError, match=message):
        first_params(other, KEY)
    free = dataclasses.replace(config, model=dataclasses.replace(config.model, dropout=0.1))
    assert_same(first_params(free, KEY), load_net(theirs)[1])


def test_a_run_is_a_source_too(tmp_path):
    save_run(tmp_path / "first", small_recipe())
    config = with_net_of(DIGITS, str(tmp_path / "first"))
    assert config.model == NET
    assert_same(first_params(config, KEY), random_params(NET, 8, "ema"))
