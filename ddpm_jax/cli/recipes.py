"""Find and load recipes by name or by path, and replace the data source or network of one."""

import ast
import dataclasses
import importlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import tyro

from ddpm_jax import recipes
from ddpm_jax.config import Config, with_unchecked
from ddpm_jax.data import DataSource
from ddpm_jax.models import Model
from ddpm_jax.settings_json import find_kind, nearest

FOLDER = Path(recipes.__path__[0])
"""The recipes that come with ddpm_jax: configs/ in a checkout, ddpm_jax/recipes/ if installed."""
CURVES = "curves"
KEPT = {"image_size", "channels", "caption_column"}
"""Settings that another network or data source keeps."""


def recipe_files(folder: Path) -> dict[str, Path]:
    """The Python files of a folder, except hidden ones, by the name of their recipe."""
    paths = sorted(folder.glob("*.py"))
    return {path.stem: path for path in paths if not path.stem.startswith(("_", "."))}


def description(path: Path) -> str:
    """The docstring of a recipe, without executing it."""
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def summary(path: Path) -> str:
    """The first line of a recipe's docstring."""
    return description(path).split("\n")[0]


def loss_curves(folder: Path) -> dict[str, Any]:
    """The loss curves that were measured with the recipes of a folder, by their names."""
    paths = sorted((folder / CURVES).glob("*.json"))
    return {path.stem: json.loads(path.read_text()) for path in paths}


def list_recipes(folder: Path) -> str:
    """One line per recipe: its name and its summary."""
    files = recipe_files(folder)
    width = max(map(len, files), default=0)
    return "\n".join(f"  {name:<{width}}  {summary(path)}" for name, path in files.items())


def find_recipe(name: str, folder: Path) -> Path:
    """The file of a recipe, given by its name in a folder or by the path of a Python file.

    Raise ValueError for an unknown name and FileNotFoundError for a missing file.
    """
    if name.endswith(".py"):
        if not Path(name).is_file():
            raise FileNotFoundError(f"There is no recipe {name}: check --config.")
        return Path(name).resolve()
    files = recipe_files(folder)
    if name not in files:
        valid = nearest(name, list(files))
        raise ValueError(f"Unknown recipe {name!r}: {valid}, or give the path of a .py file.")
    return files[name].resolve()


def load_recipe(name: str, folder: Path = FOLDER) -> Config:
    """Run the file of a recipe, which `find_recipe` finds, and return its `config`.

    The file may import other recipes as `ddpm_jax.recipes.NAME`, also those beside it. Raise
    ValueError if it defines no config.
    """
    path = find_recipe(name, folder)
    recipes.__path__ = [str(FOLDER), str(path.parent)]
    # Python finds no module by such a name, so this one shadows none.
    spec = importlib.util.spec_from_file_location(str(path), path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    config = getattr(module, "config", None)
    if not isinstance(config, Config):
        raise ValueError(f"The recipe {path} defines no config: add `config = Config(...)`.")
    return config


def explain_recipes(command: str, folder: Path, asked: bool) -> int:
    """Print the usage of `command` and all recipes; return the exit status.

    If help was asked for, the status is 0. Otherwise `--config` is missing: the status is 2, and
    the text goes to stderr.
    """
    out = sys.stdout if asked else sys.stderr
    print(f"usage: {command} --config NAME [settings]\n", file=out)
    print(f"recipes:\n{list_recipes(folder)}\n", file=out)
    print("`--config PATH.py` takes a recipe of your own.", file=out)
    print("`--config NAME --help` lists every setting.", file=out)
    return 0 if asked else 2


def replace_part(config: Config, field: str, name: str) -> Config:
    """The config with another data source (`field` "data") or another network (`field` "model").

    `name` is the module of the new source or network, which gets its own default settings. It keeps
    the `KEPT` settings of the old one. Any other setting without a default becomes tyro.MISSING, so
    that the command line must give it. The new part is not checked here, because the command line
    may change it and the others. Raise ValueError with the valid names if there is no such module.
    """
    base = {"data": DataSource, "model": Model}[field]
    kind = find_kind(base, name, field)
    fields = dataclasses.fields(kind)
    # Both are dataclasses.MISSING for a field without a default.
    values = {f.name: tyro.MISSING for f in fields if f.default is f.default_factory}
    old = vars(getattr(config, field))
    values |= {f.name: old[f.name] for f in fields if f.name in KEPT & set(old)}
    return with_unchecked(config, **{field: _unchecked(kind, values)})


def _unchecked(kind: type, values: dict[str, Any]) -> Any:
    """Settings of a class that are not yet checked. Others have their defaults."""
    settings: Any = object.__new__(kind)
    for field in dataclasses.fields(kind):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        object.__setattr__(settings, field.name, values.get(field.name, default))
    return settings
