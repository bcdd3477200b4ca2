"""Parse command lines into settings, report mistakes in one line, and configure JAX."""

import contextlib
import dataclasses
import inspect
import os
import shlex
import sys
import traceback
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import tyro
from PIL import Image

from ddpm_jax import home
from ddpm_jax.cli import console
from ddpm_jax.devices import platform as platforms
from ddpm_jax.errors import one_line
from ddpm_jax.files import probe
from ddpm_jax.settings_json import nearest

T = TypeVar("T")


def take_option(args: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """The value of `name VALUE` or `name=VALUE` in `args`, or None, and the other arguments.

    Raise ValueError if the value is missing.
    """
    rest = list(args)
    for i, arg in enumerate(rest):
        if arg == name:
            if i + 1 == len(rest) or rest[i + 1].startswith("-"):
                raise ValueError(f"{name} needs a value: give {name} VALUE.")
            return rest[i + 1], rest[:i] + rest[i + 2 :]
        if arg.startswith(f"{name}="):
            return arg.partition("=")[2], rest[:i] + rest[i + 1 :]
    return None, rest


def class_numbers(flag: str, words: Sequence[str], names: Sequence[str] | None) -> list[int]:
    """The numbers of the classes in arguments such as `cat,dog`, `cat dog` or `3,5,7`.

    A word that is the name of a class stands for that class, even if it is a number too. Raise
    ValueError for any other word that is not a whole number; the message lists the names.
    """
    names = list(names or ())
    # A name may contain commas.
    parts = [part for word in words for part in ([word] if word in names else word.split(","))]
    return [_class_number(flag, part, names) for part in parts]


def _class_number(flag: str, word: str, names: Sequence[str]) -> int:
    if word in names:
        return names.index(word)
    try:
        return int(word)
    except ValueError:
        remedy = nearest(word, names) if names else f"give whole numbers, as in {flag} 3,5,7"
        raise ValueError(f"{flag} {word} is no class of this network: {remedy}.") from None


def parse(
    kind: type[T],
    args: Sequence[str],
    default: T | None,
    prog: str,
    description: str | None = None,
) -> T:
    """Parse arguments such as `--optimizer.learning-rate 1e-4` into the settings class `kind`.

    `description` begins the help; by default it is the docstring of `kind`. Exit with status 2 at a
    mistake.
    """
    known: dict[str, Any] = {} if default is None else {"default": default}
    return tyro.cli(
        kind,
        args=list(args),
        config=(tyro.conf.AvoidSubcommands,),
        prog=prog,
        description=description,
        **known,
    )


def options_class(function: Callable, overrides: Mapping[str, Any]) -> type:
    """A dataclass of the parameters of `function`. `overrides` replaces some of their defaults."""
    hints = typing.get_type_hints(function)
    fields: list[tuple[str, Any, Any]] = []
    for parameter in inspect.signature(function).parameters.values():
        name = parameter.name
        default = overrides.get(name, parameter.default)
        fields.append((name, hints[name], dataclasses.field(default=default)))
    return dataclasses.make_dataclass("Options", fields, frozen=True, kw_only=True)


@contextlib.contextmanager
def one_line_errors(debug: bool) -> Iterator[None]:
    """Print a ValueError, OSError or ImportError of the block in one line; exit with status 2.

    `debug` prints the traceback too. Exit with status 130 at Ctrl-C. Output that cannot be written
    is dropped.
    """
    with console.lenient_output(), warnings.catch_warnings():
        # Pillow would warn of a large image before `decode_image` refuses it in one line.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            yield
        except KeyboardInterrupt:
            print("Interrupted.", file=sys.stderr)
            raise SystemExit(130) from None
        except (ValueError, OSError, ImportError) as error:
            if debug:
                traceback.print_exc()
            message = one_line(error)
            print(f"error: {message}", file=sys.stderr)
            raise SystemExit(2) from None


def run(main: Callable[[list[str]], None]) -> None:
    """Run the main function of a command with the arguments of this process."""
    with one_line_errors("--debug" in sys.argv):
        main([expand_home(argument) for argument in sys.argv[1:]])


def expand_home(argument: str) -> str:
    """`--name=~/path` with the home directory; a shell expands only a ~ that begins a word."""
    flag, equals, value = argument.partition("=")
    if not (flag.startswith("--") and value.startswith("~/")):
        return argument
    return f"{flag}{equals}{home.expand(value)}"


def command(name: str) -> str:
    """How to call the command `train` or `sample`, in the way this process was called.

    That is a script of a checkout, or the command of an installed package.
    """
    called = Path(sys.argv[0])
    if called.name in ("train.py", "sample.py"):
        script = called.with_name(f"{name}.py")
        return f"python {shlex.quote(str(script))}"
    return f"ddpm-jax-{name}"


def set_up_jax(
    batch_size: int,
    platform: str | None,
    cache: bool,
    cpu_devices: int | None = None,
    cores_per_device: int = 1,
    deterministic: bool = False,
) -> int | None:
    """Configure JAX before its first use of a device; return the number of virtual CPU devices.

    The number is None if the user set it by an environment variable, or if JAX uses other devices.
    Raise ValueError if there is no device.
    """
    platforms.warn_of_slow_settings()
    platforms.order_for_memory()
    if cache:
        use_compilation_cache()
    if deterministic:
        platforms.set_deterministic()
    num_devices = platforms.use_cpu_cores(batch_size, cpu_devices, cores_per_device)
    if platform is not None:
        platforms.require_platform(platform)
    platforms.check_devices()
    return num_devices if jax.default_backend() == "cpu" else None


def use_compilation_cache() -> None:
    """Cache compiled programs in JAX_COMPILATION_CACHE_DIR, or else in the user's cache folder.

    If that folder is unknown or cannot be written, say so on stderr and cache nothing.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        try:
            folder = home.known_cache_folder()
            probe(folder / "probe")
        except (OSError, ValueError) as error:
            print(
                f"Compiled programs are not cached ({str(error).rstrip('.')}): set "
                "JAX_COMPILATION_CACHE_DIR to a folder that can be written.",
                file=sys.stderr,
            )
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
    if not os.environ.get("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        # Initialisation has a dozen programs that compile in a tenth of a second (docs/speed.md).
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
    # If JAX splits attention by cuDNN over several GPUs, it writes an address of this process into
    # the program. With the address in the key, the program would never be found again.
    jax.config.update("jax_remove_custom_partitioning_ptr_from_cache_key", True)
