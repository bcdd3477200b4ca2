"""Paths below the user's home directory, which a user of a container may not have."""

import atexit
import functools
import os
import sys
import tempfile
from pathlib import Path


def is_known() -> bool:
    """Whether this user has a home directory."""
    return os.path.expanduser("~") != "~"


def expand(path: str) -> Path:
    """The path with a leading ~ or ~user replaced. Raise ValueError if that home is unknown."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"The home directory in {path} is unknown: give the path without ~, or set HOME."
        ) from error


@functools.cache
def temporary_cache(contents: str, remedy: str) -> Path:
    """Make a folder for what belongs into an unknown home directory, and say so on stderr.

    It is removed at the exit of the process.
    """
    folder = tempfile.TemporaryDirectory(prefix="ddpm_jax-", ignore_cleanup_errors=True)
    atexit.register(folder.cleanup)
    print(
        f"No home directory is known, so {contents} is kept only until the exit: {remedy}.",
        file=sys.stderr,
    )
    return Path(folder.name)


def known_cache_folder() -> Path:
    """The folder of this package in the user's cache. Raise ValueError without a home."""
    return expand(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "ddpm_jax"


def cache_folder(contents: str, remedy: str) -> Path:
    """The folder of this package in the user's cache, or a temporary one without a home."""
    try:
        return known_cache_folder()
    except ValueError:
        return temporary_cache(contents, remedy)


def provide_hub_cache() -> None:
    """Make the hub's client use a temporary cache if it has none. Call this before its import.

    The client would create a folder named ~ in the current directory.
    """
    variables = ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME")
    if not is_known() and not any(map(os.environ.get, variables)):
        os.environ["HF_HOME"] = str(temporary_cache("the hub's cache", "set HF_HOME to a folder"))
