"""What train.py and sample.py share: recipes by name, typed settings, errors of one line, JAX's settings."""

import contextlib
import difflib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ddpm_jax.config import Config

T = TypeVar("T")


def recipes(folder: Path) -> dict[str, Path]:
    """The recipes of a folder by name: its Python files."""
    return {path.stem: path for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")}


def summary(path: Path) -> str:
    """The first line of a recipe's docstring; the recipe is not run."""
    import ast

    return (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]


def list_recipes(folder: Path) -> str:
    """One line a recipe: its name and what it trains."""
    return "\n".join(f"  {name:<18}{summary(path)}" for name, path in recipes(folder).items())


def load_recipe(name: str, folder: Path) -> Config:
    """The `config` of a recipe; raises ValueError, nearest names first, for one that is not there."""
    found = recipes(folder)
    if name not in found:
        raise ValueError(f"unknown recipe {name!r}; {nearest(name, list(found))}")
    spec = importlib.util.spec_from_file_location(f"configs.{name}", found[name])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(spec.name, module)
    spec.loader.exec_module(module)
    return module.config


def nearest(name: str, valid: Sequence[str]) -> str:
    """Such as "did you mean 'cifar10'? there are: ...", the nearest first."""
    close = difflib.get_close_matches(name, valid, n=3)
    others = [other for other in valid if other not in close]
    return f"there are: {', '.join([*close, *others])}"


def take_option(args: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """The value of `--name VALUE` or `--name=VALUE`, and the arguments without it; ValueError if the value is missing."""
    rest, value = list(args), None
    for i, arg in enumerate(rest):
        if arg == name:
            if i + 1 == len(rest) or rest[i + 1].startswith("-"):
                raise ValueError(f"{name} needs a value")
            value, rest[i : i + 2] = rest[i + 1], []
            break
        if arg.startswith(f"{name}="):
            value, rest[i : i + 1] = arg.partition("=")[2], []
            break
    return value, rest


def parse(kind: type[T], args: Sequence[str], default: T | None = None, **about: Any) -> T:
    """`kind` from arguments such as `--optimizer.learning-rate 1e-4`; a mistake exits with status 2."""
    import tyro

    settings = (tyro.conf.AvoidSubcommands,)
    if default is None:
        return tyro.cli(kind, args=list(args), config=settings, **about)
    return tyro.cli(kind, args=list(args), default=default, config=settings, **about)


@contextlib.contextmanager
def one_line_errors(debug: bool) -> Iterator[None]:
    """A user's mistake ends in one line and exit status 2; `debug` shows where it was raised."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        if debug:
            traceback.print_exc()
        message = " ".join(str(error).split())
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(2) from None


def use_compilation_cache() -> None:
    """Compiled programs are kept in the user's cache folder, or where JAX_COMPILATION_CACHE_DIR says."""
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddpm_jax"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
