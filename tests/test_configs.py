"""Every recipe loads, says how to run it, and trains a step when shrunk."""

import ast
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.cli import arguments
from ddpm_jax.config import Config, differences, from_json, to_json
from ddpm_jax.models import Model
from ddpm_jax.training.optimizer import make_optimizer
from ddpm_jax.training.step import init_state, make_train_step, model_loss

CONFIGS = Path(__file__).parent.parent / "configs"
RECIPES = sorted(arguments.recipes(CONFIGS))
PARAMETERS = {
    "butterflies": 18_536_323,
    "butterflies_long": 18_536_323,
    "cifar10": 35_746_307,
    "cifar10_classes": 35_751_939,
    "corruption": 309_057,
    "fashion_mnist": 1_707_009,
    "flowers128": 113_673_219,
    "mnist": 1_707_009,
    "mnist_classes": 1_708_417,
    "s1_cifar10": 33_261_827,
    "s1_fashion_mnist": 33_260_417,
    "s1_flowers": 33_261_827,
    "s1_mnist": 33_260_417,
}


def load(name: str) -> Config:
    return arguments.load_recipe(name, CONFIGS)


def shrunk(model: Model) -> Model:
    """The same architecture with one level of few channels."""
    small = {"image_size": 8}
    if hasattr(model, "widths"):
        small |= {"widths": (8,), "groups": 4}
    if hasattr(model, "attention"):
        small |= {"attention": (True,), "head_dim": None, "layers_per_level": 1}
    return dataclasses.replace(model, **small)


@pytest.mark.parametrize("name", RECIPES)
def test_docstring_gives_command_hardware_data_and_expectation(name):
    text = ast.get_docstring(ast.parse((CONFIGS / f"{name}.py").read_text()))
    assert f"python train.py --config {name}\n" in f"{text}\n"
    for word in ("Hardware", "Data", "xpected"):
        assert word in text


@pytest.mark.parametrize("name", RECIPES)
def test_config_survives_json(name):
    assert from_json(to_json(load(name))) == load(name)


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_parameter_count_is_that_of_the_system_it_reproduces(name):
    assert load(name).model.parameter_count() == PARAMETERS[name]


@pytest.mark.parametrize("name", RECIPES)
def test_one_step_of_the_shrunk_recipe_learns(name):
    config = load(name)
    model = shrunk(config.model)
    training = dataclasses.replace(config.training, batch_size=4)
    tx = make_optimizer(dataclasses.replace(config, model=model, training=training), images=100)
    state = init_state(model.init(jax.random.key(0)), tx)
    step = jax.jit(make_train_step(model_loss(model, config.objective, training.dtype), tx, config.ema))
    image = jax.random.uniform(jax.random.key(1), (4, *model.image_shape), minval=config.objective.low)
    batch = {"image": image, "label": jnp.arange(4), "key": jax.random.split(jax.random.key(2), 4)}
    first, metrics = step(state, batch)
    after, _ = step(first, batch)
    moved = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (after.params, state.params)), strict=True)]
    assert int(after.step) == 2
    assert np.isfinite(float(metrics["loss"]))
    assert max(moved) > 0


@pytest.mark.parametrize("name", [name for name in RECIPES if name.endswith("_classes")])
def test_a_recipe_by_class_is_its_base_with_labels_and_guidance(name):
    config, base = load(name), load(name.removesuffix("_classes"))
    assert (config.model.num_classes, config.model.label_dropout) == (10, 0.1)
    assert config.sampling.guided
    assert differences(config, base) == ["model.label_dropout", "model.num_classes", "sampling.guidance_scale"]


def test_published_settings():
    cifar10, s1, flowers = load("cifar10"), load("s1_mnist"), load("flowers128")
    assert (cifar10.training.steps, cifar10.training.batch_size, cifar10.optimizer.learning_rate) == (
        800_000,
        128,
        2e-4,
    )
    assert (s1.training.epochs, s1.training.batch_size, s1.optimizer.floor) == (1000, 64, 1e-6)
    assert flowers.total_steps(8189) == 5120
    assert load("butterflies").steps_per_epoch(1000) == 16
    assert load("butterflies_long").steps_per_epoch(1000) == 2
    assert jnp.dtype(flowers.training.dtype) == jnp.float16
