"""Parse command lines into settings, report mistakes in one line, and set up JAX."""

import contextlib
import dataclasses
import inspect
import os
import sys
import traceback
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import tyro

from ddpm_jax.devices import platform as platforms

T = TypeVar("T")


def take_option(args: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """The value of `--name VALUE` or `--name=VALUE`, and the other arguments; ValueError if the value is missing."""
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


def whole_numbers(flag: str, words: Sequence[str]) -> list[int]:
    """The numbers of such as "3,5,7", or 3 5 7; raises ValueError for words that are none."""
    try:
        return [int(word) for word in ",".join(words).split(",")] if words else []
    except ValueError:
        raise ValueError(
            f"{flag} takes whole numbers, such as {flag} 3,5,7, not {' '.join(words)}"
        ) from None


def parse(kind: type[T], args: Sequence[str], default: T | None, prog: str) -> T:
    """`kind` from arguments such as `--optimizer.learning-rate 1e-4`; a mistake exits with status 2."""
    settings = (tyro.conf.AvoidSubcommands,)
    if default is None:
        return tyro.cli(kind, args=list(args), config=settings, prog=prog)
    return tyro.cli(kind, args=list(args), config=settings, prog=prog, default=default)


def options_class(function: Callable, known: Mapping[str, Any]) -> type:
    """A dataclass of the keyword options of `function`, with its defaults, or those in `known`."""
    hints = typing.get_type_hints(function)
    parameters = inspect.signature(function).parameters.values()
    fields = [
        (p.name, hints[p.name], dataclasses.field(default=known.get(p.name, p.default)))
        for p in parameters
    ]
    return dataclasses.make_dataclass("Options", fields, frozen=True, kw_only=True)


@contextlib.contextmanager
def one_line_errors(debug: bool) -> Iterator[None]:
    """A user's mistake ends in one line and exit status 2; `debug` shows where it was raised."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except (ValueError, OSError, ImportError) as error:
        if debug:
            traceback.print_exc()
        message = " ".join(str(error).split())
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(2) from None


def set_up_jax(
    batch_size: int,
    platform: str | None,
    cache: bool,
    cpu_devices: int | None = None,
    cores_per_device: int = 1,
    deterministic: bool = False,
) -> int | None:
    """The number of virtual CPU devices, after JAX's settings are made; to be called before its first use."""
    if cache:
        use_compilation_cache()
    if deterministic:
        platforms.set_deterministic()
    count = platforms.use_cpu_cores(batch_size, cpu_devices, cores_per_device)
    if platform is not None:
        platforms.require_platform(platform)
    return count


def use_compilation_cache() -> None:
    """Compiled programs are kept in the user's cache folder, or where JAX_COMPILATION_CACHE_DIR says."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddpm_jax"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
