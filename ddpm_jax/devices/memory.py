"""Report a shortage of memory in one line with the remedy, if possible before the first step."""

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

import jax

from ddpm_jax.errors import one_line

# The numbers of glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
M_ARENA_MAX = -8


@contextlib.contextmanager
def explain_oom(workload: str, remedy: str) -> Iterator[None]:
    """Turn an out-of-memory error of a device or the host into a ValueError that names the remedy.

    `workload` names what needs the memory. A process that the kernel kills (the OOM killer) cannot
    be caught.
    """
    try:
        yield
    except MemoryError as error:
        raise ValueError(
            f"Out of memory on the host ({error or 'no more available'}) for {workload}: {remedy}."
        ) from error
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        reason = one_line(error, 200)
        raise ValueError(
            f"Out of memory on the device ({reason}) for {workload}: {remedy}."
        ) from error


def check_fits(needed: int) -> None:
    """Raise MemoryError if the host is known to have less than `needed` bytes available."""
    free = available()
    if free is not None and needed > free:
        raise MemoryError(f"{needed / 1e9:.1f} GB needed for a step, {free / 1e9:.1f} GB available")


def release() -> None:
    """Return freed memory to the system, where the C library can (glibc).

    Compiling a training step frees hundreds of MiB that the C library would keep, beside what the
    step itself then needs (benchmarks/memory.py).
    """
    if glibc := _glibc():
        glibc.malloc_trim(0)


def use_one_heap() -> None:
    """Make all threads allocate from one heap (glibc), so that `keep_freed` can work.

    Call this before JAX starts its threads. A thread that has allocated keeps its own heap, and
    large arrays do not fit into such a one.
    """
    if glibc := _glibc():
        glibc.mallopt(M_ARENA_MAX, 1)


def keep_freed() -> None:
    """Keep memory that is freed from now on for later arrays, where the C library can (glibc).

    By default it returns the temporaries of each training step to the system, which then clears
    every page of them for the next step (benchmarks/freed_memory.py).
    """
    if glibc := _glibc():
        glibc.mallopt(M_MMAP_MAX, 0)
        # -1 is the largest size. A threshold of 2 GiB would return larger temporaries.
        glibc.mallopt(M_TRIM_THRESHOLD, -1)


def _glibc() -> ctypes.CDLL | None:
    """The C library, if it is glibc: others lack `malloc_trim`."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, "malloc_trim") else None


def available(root: Path = Path("/")) -> int | None:
    """The bytes that this process can still allocate on the host; None if unknown.

    Counts free memory and swap, within the limits of the control groups of this process.
    """
    meminfo = root / "proc/meminfo"
    if not meminfo.is_file():
        return None
    rows = (line.split() for line in meminfo.read_text().splitlines())
    kilobytes = {name.rstrip(":"): int(value) for name, value, *_ in rows}
    if "MemAvailable" not in kilobytes:
        return None
    free = 1024 * (kilobytes["MemAvailable"] + kilobytes.get("SwapFree", 0))
    return min([free, *_available_in_groups(root)])


def _available_in_groups(root: Path) -> Iterator[int]:
    """The bytes left in each control group (version 2) of this process that has a limit."""
    groups = root / "sys/fs/cgroup"
    membership = root / "proc/self/cgroup"
    lines = membership.read_text().splitlines() if membership.is_file() else []
    names = [line.removeprefix("0::/") for line in lines if line.startswith("0::/")]
    # A limit of a parent group holds for its children too.
    folders = {folder for name in names for folder in (groups / name, *(groups / name).parents)}
    for folder in folders:
        limit_file = folder / "memory.max"
        if not limit_file.is_file():
            continue
        limit = limit_file.read_text().strip()
        if limit == "max":
            continue
        used = int((folder / "memory.current").read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        # The kernel counts the page cache as used, but frees it on demand.
        page_cache = int(stat.get("active_file", 0)) + int(stat.get("inactive_file", 0))
        yield int(limit) - used + page_cache
