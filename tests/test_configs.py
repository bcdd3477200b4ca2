"""Every recipe loads, says how to run it, and trains a step when shrunk."""

import ast
import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.cli import arguments
from ddpm_jax.config import KINDS, Config, config_from_json, config_to_json, differences, settings_classes
from ddpm_jax.models import Model
from ddpm_jax.training.step import init_state, make_train_step, model_loss

FOLDER = Path(__file__).parent.parent / "configs"
CONFIGS = {name: arguments.load_recipe(name, FOLDER) for name in sorted(arguments.recipes(FOLDER))}
PARAMETERS = {
    "butterflies": 18_536_323,
    "butterflies_long": 18_536_323,
    "cifar10": 35_746_307,
    "cifar10_classes": 35_751_939,
    "fashion_mnist": 1_707_009,
    "flowers128": 113_673_219,
    "mnist": 1_707_009,
    "mnist_classes": 1_708_417,
    "s1_cifar10": 33_261_827,
    "s1_fashion_mnist": 33_260_417,
    "s1_flowers": 33_261_827,
    "s1_mnist": 33_260_417,
}
BATCH = 4


def shrunk(model: Model) -> Model:
    """The same architecture with one level of few channels."""
    small = {"image_size": 8}
    if hasattr(model, "widths"):
        small |= {"widths": (8,), "groups": 4}
    if hasattr(model, "attention"):
        small |= {"attention": (True,), "head_dim": None, "layers_per_level": 1}
    return dataclasses.replace(model, **small)


def program(config: Config) -> tuple:
    """What decides which code a training step runs: recipes of one program differ in constants."""
    return type(config.model).__name__, config.training.dtype, config.model.num_classes


STEPPED = {program(config): name for name, config in CONFIGS.items()}
"""One recipe of each program."""


def step_of(config: Config):
    """The step (state, batch) -> (state, metrics) of a shrunk recipe, its first state, and a batch."""
    model = shrunk(config.model)
    training = dataclasses.replace(config.training, batch_size=BATCH)
    config = dataclasses.replace(config, model=model, training=training)
    tx = config.make_optimizer(images=100)
    step = make_train_step(model_loss(model, config.objective, training.dtype), tx, config.ema)
    image = np.random.default_rng(0).uniform(-1, 1, (BATCH, *model.image_shape)).astype(np.float32)
    label = np.arange(BATCH, dtype=np.int32)  # data with labels train nets without classes too
    batch = {"image": image, "label": label, "key": jax.random.split(jax.random.key(2), BATCH)}

    def first_state():
        return init_state(model.init(jax.random.key(0)), tx, config.ema)

    return step, first_state, batch


def test_docstrings_give_command_hardware_data_and_expectation():
    for name in CONFIGS:
        text = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text()))
        assert f"python train.py --config {name}\n" in f"{text}\n", name
        for word in ("Hardware", "Data", "xpected"):
            assert word in text, (name, word)


def test_every_recipe_survives_json():
    for name, config in CONFIGS.items():
        assert config_from_json(json.loads(json.dumps(config_to_json(config)))) == config, name


def words(value) -> set[str]:
    """The names and the strings in a JSON value."""
    if isinstance(value, dict):
        return set(value) | set().union(*map(words, value.values()))
    if isinstance(value, list):
        return set().union(*map(words, value))
    return {value} if isinstance(value, str) else set()


def test_the_json_of_a_recipe_holds_no_python_path():
    kinds = {kind: cls for package in KINDS.values() for kind, cls in settings_classes(package).items()}
    classes = {cls.__name__ for cls in kinds.values()}
    for name, config in CONFIGS.items():
        value = config_to_json(config)
        assert {value["model"]["kind"], value["data"]["kind"]} <= set(kinds), name
        assert value.pop("ddpm_jax").replace(".", "").isdigit(), name
        wrong = [word for word in words(value) if word in classes or "ddpm_jax" in word or "." in word]
        assert wrong == [], name


def test_parameter_counts_are_those_of_the_systems_they_reproduce():
    found = {name: CONFIGS[name].model.parameter_count() for name in PARAMETERS}
    assert found == PARAMETERS


@pytest.mark.parametrize("name", sorted(STEPPED.values()))
def test_a_step_of_the_shrunk_recipe_learns(name):
    """One recipe of each architecture, dtype and number of classes takes two steps for real."""
    step, first_state, batch = step_of(CONFIGS[name])
    state, step = first_state(), jax.jit(step)
    first, metrics = step(state, batch)
    after, _ = step(first, batch)
    moved = [
        np.abs(np.subtract(a, b)).max()
        for a, b in zip(*map(jax.tree.leaves, (after.params, state.params)), strict=True)
    ]
    assert int(after.step) == 2
    assert np.isfinite(float(metrics["loss"]))
    assert max(moved) > 0


@pytest.mark.parametrize("name", sorted(set(CONFIGS) - set(STEPPED.values())))
def test_a_step_of_the_shrunk_recipe_gives_a_state_of_the_same_shapes(name):
    """The other recipes' steps are traced and not run: model, loss, optimizer and averages fit together."""
    step, first_state, batch = step_of(CONFIGS[name])
    before = jax.eval_shape(first_state)
    after, metrics = jax.eval_shape(step, before, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), before)
    assert metrics["loss"].shape == ()


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.endswith("_classes")])
def test_a_recipe_by_class_is_its_base_with_labels_and_guidance(name):
    config, base = CONFIGS[name], CONFIGS[name.removesuffix("_classes")]
    assert (config.model.num_classes, config.model.label_dropout) == (10, 0.1)
    assert config.sampling.guided
    assert differences(config, base) == ["model.label_dropout", "model.num_classes", "sampling.guidance_scale"]


def test_published_settings():
    cifar10, s1, flowers = CONFIGS["cifar10"], CONFIGS["s1_mnist"], CONFIGS["flowers128"]
    assert (cifar10.training.steps, cifar10.training.batch_size, cifar10.optimizer.learning_rate) == (
        800_000,
        128,
        2e-4,
    )
    assert (s1.training.epochs, s1.training.batch_size, s1.optimizer.floor) == (1000, 64, 1e-6)
    assert flowers.total_steps(8189) == 5120
    assert CONFIGS["butterflies"].steps_per_epoch(1000) == 16
    assert CONFIGS["butterflies_long"].steps_per_epoch(1000) == 2
    assert jnp.dtype(flowers.training.dtype) == jnp.float16
