"""Memory that does not suffice: said in one line, with what to change, and where it can be before the first step."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax


@contextlib.contextmanager
def explain_oom(what: str, remedy: str) -> Iterator[None]:
    """Memory that runs out in the block, the devices' or the host's, is a ValueError that says what for and the remedy.

    The kernel's own end of a process that took too much cannot be caught.
    """
    try:
        yield
    except MemoryError as error:
        raise ValueError(
            f"out of memory on the host ({error or 'no more to be had'}): {what}: {remedy}"
        ) from error
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"out of memory on the device ({said}): {what}: {remedy}") from error


def check_fits(needed: int) -> None:
    """Raises MemoryError where so many bytes are not to be had on this host."""
    free = available()
    if free is not None and needed > free:
        raise MemoryError(f"{needed / 1e9:.1f} GB needed for a step, {free / 1e9:.1f} GB available")


def available(system: Path = Path("/")) -> int | None:
    """Bytes that this host can give: free memory and swap, within the limits of its control groups; None if unknown."""
    meminfo = system / "proc/meminfo"
    if not meminfo.is_file():
        return None
    rows = (line.split() for line in meminfo.read_text().splitlines())
    kilobytes = {name.rstrip(":"): int(value) for name, value, *_ in rows}
    if "MemAvailable" not in kilobytes:
        return None
    free = 1024 * (kilobytes["MemAvailable"] + kilobytes.get("SwapFree", 0))
    return min([free, *_left_in_groups(system)])


def _left_in_groups(system: Path) -> Iterator[int]:
    """What the control groups of this process (version 2) leave, each that has a limit."""
    groups = system / "sys/fs/cgroup"
    names = system / "proc/self/cgroup"
    own = (
        [line[4:] for line in names.read_text().splitlines() if line.startswith("0::/")]
        if names.is_file()
        else []
    )
    for folder in {above for name in own for above in (groups / name, *(groups / name).parents)}:
        limit = folder / "memory.max"
        if limit.is_file() and (most := limit.read_text().strip()) != "max":
            parts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            given_back = int(parts.get("active_file", 0)) + int(parts.get("inactive_file", 0))
            yield int(most) - int((folder / "memory.current").read_text()) + given_back
