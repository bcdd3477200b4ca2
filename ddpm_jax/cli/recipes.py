"""The recipes of a folder by name, and another source or network in place of a recipe's."""

import ast
import dataclasses
import importlib
import importlib.util
import sys
from pathlib import Path

import tyro

from ddpm_jax.config import Config, find_kind, nearest
from ddpm_jax.data import DataSource
from ddpm_jax.models import Model


def recipe_files(folder: Path) -> dict[str, Path]:
    """The recipes of a folder by name: its Python files."""
    return {
        path.stem: path for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")
    }


def summary(path: Path) -> str:
    """The first line of a recipe's docstring; the recipe is not run."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]


def list_recipes(folder: Path) -> str:
    """One line a recipe: its name and what it trains."""
    return "\n".join(f"  {name:<18}{summary(path)}" for name, path in recipe_files(folder).items())


def load_recipe(name: str, folder: Path) -> Config:
    """The `config` of a recipe; raises ValueError, nearest names first, for one that is not there."""
    found = recipe_files(folder)
    if name not in found:
        raise ValueError(f"unknown recipe {name!r}; {nearest(name, list(found))}")
    spec = importlib.util.spec_from_file_location(f"configs.{name}", found[name])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(spec.name, module)
    spec.loader.exec_module(module)
    return module.config


def explain_recipes(script: str, folder: Path, asked: bool) -> int:
    """The exit status after listing the recipes: 0 where help was asked for, 2 where --config was missing."""
    out = sys.stdout if asked else sys.stderr
    print(
        f"usage: python {script} --config NAME [settings]\n\nrecipes:\n{list_recipes(folder)}\n",
        file=out,
    )
    print("`--config NAME --help` lists every setting.", file=out)
    return 0 if asked else 2


def replace_part(config: Config, field: str, name: str) -> Config:
    """The config with its `data` or `model` of another kind, the module of that name, and its own defaults.

    Picture size and channels are kept; what has no default is left for the command line to give. Raises ValueError
    listing the names.
    """
    kind = find_kind({"data": DataSource, "model": Model}[field], name, field)
    needed = [f.name for f in dataclasses.fields(kind) if f.default is f.default_factory]
    kept = (
        {"image_size": config.model.image_size, "channels": config.model.channels}
        if field == "model"
        else {}
    )
    values = {key: kept.get(key, tyro.MISSING) for key in needed}
    return dataclasses.replace(config, **{field: kind(**values)})
