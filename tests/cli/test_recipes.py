"""Recipes by name and by path, and recipes that import others, whatever the Python path."""

import sys
from pathlib import Path

import pytest
from helpers.commands import CONFIGS

from ddpm_jax.cli import train
from ddpm_jax.cli.recipes import FOLDER, load_recipe, recipe_files
from ddpm_jax.config import Config

ROOT = Path(__file__).parents[2]
OF_ANOTHER = """
import dataclasses
from ddpm_jax.recipes.{} import config as base
config = dataclasses.replace(base, training=dataclasses.replace(base.training, steps={}))
"""


@pytest.fixture
def no_checkout(monkeypatch):
    """Take the checkout out of the Python path, as `python -P` does, and forget all recipes."""
    elsewhere = [path for path in sys.path if Path(path).resolve() != ROOT]
    monkeypatch.setattr(sys, "path", elsewhere)
    for name in list(sys.modules):
        if name.startswith(("configs", "ddpm_jax.recipes.")):
            monkeypatch.delitem(sys.modules, name)


@pytest.mark.usefixtures("no_checkout")
def test_recipes_import_each_other_whatever_the_python_path():
    for name in recipe_files(CONFIGS):
        assert isinstance(load_recipe(name), Config), name


@pytest.mark.usefixtures("no_checkout")
def test_a_path_names_a_recipe_which_imports_others_and_those_beside_it(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "base.py").write_text(OF_ANOTHER.format("digits", 5))
    (tmp_path / "mine" / "long.py").write_text(OF_ANOTHER.format("base", 7))
    monkeypatch.chdir(tmp_path)
    options = train.parse("mine/long.py", [], FOLDER)
    assert options.config.training.steps == 7
    assert options.config.model == load_recipe("digits").model
    assert options.workdir == Path("runs/long")


def test_a_file_that_is_no_recipe_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no recipe nowhere\.py: check --config"):
        load_recipe("nowhere.py")
    path = tmp_path / "empty.py"
    path.write_text("config = None")
    with pytest.raises(ValueError, match=r"empty\.py defines no config: add `config = Config"):
        load_recipe(str(path))
