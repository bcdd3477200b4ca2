"""Every recipe loads, documents how to run it, and trains a step when shrunk."""

import ast
import dataclasses
import functools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.generation import random_params

from ddpm_jax.cli.recipes import list_recipes, load_recipe, recipe_files
from ddpm_jax.config import (
    Config,
    config_to_json,
    differences,
)
from ddpm_jax.latent_config import read_config
from ddpm_jax.models import Model
from ddpm_jax.models.text_unet import TextUNet
from ddpm_jax.settings_json import KINDS, settings_classes
from ddpm_jax.training.step import init_state, make_train_step, model_loss

pytestmark = pytest.mark.usefixtures("without_kernels")

FOLDER = Path(__file__).parent.parent / "configs"
CONFIGS = {name: load_recipe(name, FOLDER) for name in sorted(recipe_files(FOLDER))}
PARAMETERS = {
    "butterflies": 18_536_323,
    "butterflies_long": 18_536_323,
    "cifar10": 35_746_307,
    "cifar10_classes": 35_751_939,
    "fashion_mnist": 1_707_009,
    "emoji": 3_048_040,
    "flowers128": 113_673_219,
    "mnist": 1_707_009,
    "mnist_classes": 1_708_417,
    "convunet_cifar10": 33_261_827,
    "convunet_fashion_mnist": 33_260_417,
    "convunet_flowers": 33_261_827,
    "convunet_mnist": 33_260_417,
}
BATCH = 4


def shrunk(model: Model) -> Model:
    """The same architecture with one level of 8 channels."""
    settings = {"image_size": 8}
    if hasattr(model, "widths"):
        settings |= {"widths": (8,), "groups": 4}
    if hasattr(model, "attention"):
        settings |= {"attention": (False,), "head_dim": None, "layers_per_level": 1}
    return dataclasses.replace(model, **settings)


def shrunk_recipe(name: str) -> Config:
    """A recipe with its network shrunk and a small batch."""
    config = CONFIGS[name]
    training = dataclasses.replace(config.training, batch_size=BATCH)
    return dataclasses.replace(config, model=shrunk(config.model), training=training)


def batch_for(model: Model) -> dict:
    """A batch with labels, which a network without classes ignores, captions, or a condition."""
    rng = np.random.default_rng(0)
    image = rng.uniform(-1, 1, (BATCH, *model.image_shape)).astype(np.float32)
    keys = jax.random.split(jax.random.key(2), BATCH)
    label = np.arange(BATCH, dtype=np.int32)
    if isinstance(model, TextUNet):
        label = np.asarray(model.empty_captions(BATCH))
    batch = {"image": image, "label": label, "key": keys}
    shapes = {
        "vector": (model.vector_size,),
        "condition_image": (*model.image_shape[:2], model.condition_channels),
    }
    for name in set(shapes) & set(model.condition_parts):
        batch[name] = np.zeros((BATCH, *shapes[name]), np.float32)
    return batch


def test_docstrings_give_command_hardware_time_data_and_expectation():
    for name in CONFIGS:
        text = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text()))
        assert len(text.splitlines()[0]) <= 72, name
        command = rf"python train\.py --config {name}( --data\.path PATH)?$"
        assert re.search(command, text, re.MULTILINE), name
        for word in ("Hardware", "ime: ", "Data: ", "Expected: "):
            assert word in text, (name, word)


def test_every_recipe_survives_json():
    for name, config in CONFIGS.items():
        assert read_config(json.loads(json.dumps(config_to_json(config)))) == config, name


def words(value) -> set[str]:
    """The names and strings in a JSON value."""
    if isinstance(value, dict):
        return set(value) | set().union(*map(words, value.values()))
    if isinstance(value, list):
        return set().union(*map(words, value))
    return {value} if isinstance(value, str) else set()


def test_the_json_of_a_recipe_holds_no_python_path():
    kinds = {}
    for base in KINDS:
        kinds |= settings_classes(base)
    class_names = {cls.__name__ for cls in kinds.values()}
    for name, config in CONFIGS.items():
        value = config_to_json(config)
        assert {value["model"]["kind"], value["data"]["kind"]} <= set(kinds), name
        assert value.pop("ddpm_jax").replace(".", "").isdigit(), name
        strings = words(value)
        assert not strings & class_names, name
        assert not [string for string in strings if "ddpm_jax" in string or "." in string], name


def test_recipes_save_before_their_end():
    """A kill loses at most one interval between saves."""
    for name, config in CONFIGS.items():
        steps_per_epoch = 500
        total = config.training.steps or config.training.epochs * steps_per_epoch
        every = config.steps_between_saves(steps_per_epoch * config.training.batch_size)
        assert every <= max(total / 2, 500), name


def test_parameter_counts_match_the_published_networks():
    # Several recipes share a network.
    parameter_count = functools.cache(lambda model: model.parameter_count())
    assert {name: parameter_count(CONFIGS[name].model) for name in PARAMETERS} == PARAMETERS
    assert parameter_count(CONFIGS["emoji"].autoencoder.model) == 689_083


@pytest.mark.parametrize("name", ["mnist_classes", "convunet_mnist"])
def test_a_step_of_the_shrunk_recipe_learns(name):
    """Two steps for one recipe of each architecture, because a warm-up starts at a rate of 0."""
    config = shrunk_recipe(name)
    model = config.model
    tx = config.make_optimizer(num_images=100)
    batch = batch_for(model)
    state = jax.jit(lambda params: init_state(params, tx, config.ema))(random_params(model))
    step = jax.jit(make_train_step(model_loss(model, config.objective), tx, config.ema))
    first, metrics = step(state, batch)
    second, _ = step(first, batch)
    assert int(second.step) == 2
    assert np.isfinite(float(metrics["loss"]))
    changes = jax.tree.map(
        lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), second.params, state.params
    )
    assert max(jax.tree.leaves(changes)) > 0


def test_every_shrunk_recipe_has_a_state_and_a_loss():
    """Network, labels, objective, dtype, optimizer and averages fit together; traced, not run."""
    traced = {}
    for name in CONFIGS:
        config = shrunk_recipe(name)
        model = config.model
        tx = config.make_optimizer(num_images=100)
        program = (model, config.objective, config.training.dtype)
        if program in traced:
            continue
        traced[program] = name
        params = model.shapes()
        state = jax.eval_shape(functools.partial(init_state, tx=tx, ema=config.ema), params)
        assert jax.tree.structure(state.ema_params["ema"]) == jax.tree.structure(params), name
        loss = model_loss(model, config.objective, config.training.dtype)
        batch = batch_for(model)
        losses = jax.eval_shape(loss, params, batch["key"], batch)
        assert (losses.shape, losses.dtype) == ((BATCH,), np.float32), name
    # It is the only recipe in float16.
    assert "flowers128" in traced.values()


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.endswith("_classes")])
def test_a_recipe_by_class_is_its_base_with_labels_and_guidance(name):
    config = CONFIGS[name]
    base = CONFIGS[name.removesuffix("_classes")]
    assert config.model.num_classes == 10
    assert config.model.label_dropout == 0.1
    assert config.sampling.guided
    assert differences(config, base) == [
        "model.label_dropout",
        "model.num_classes",
        "sampling.guidance_scale",
    ]


def test_recipes_have_the_published_settings():
    cifar10 = CONFIGS["cifar10"]
    assert cifar10.training.steps == 800_000
    assert cifar10.training.batch_size == 128
    assert cifar10.optimizer.learning_rate == 2e-4
    convunet = CONFIGS["convunet_mnist"]
    assert convunet.training.epochs == 1000
    assert convunet.training.batch_size == 64
    assert convunet.optimizer.floor == 1e-6
    flowers = CONFIGS["flowers128"]
    assert flowers.total_steps(8189) == 5120
    assert CONFIGS["butterflies"].steps_per_epoch(1000) == 16
    assert CONFIGS["butterflies_long"].steps_per_epoch(1000) == 2
    assert jnp.dtype(flowers.training.dtype) == jnp.float16


def test_the_list_of_recipes_separates_each_name_from_its_summary():
    lines = list_recipes(FOLDER).splitlines()
    assert [line.split()[0] for line in lines] == sorted(CONFIGS)
    assert len({len(line) - len(line[2:].split("  ", 1)[1].lstrip()) for line in lines}) == 1


def test_hidden_files_are_no_recipes(tmp_path):
    for name in ("._mine.py", "_shared.py", "mine.py"):
        (tmp_path / name).touch()
    assert list(recipe_files(tmp_path)) == ["mine"]
