"""A folder in which to try a fault, and checks of how a run in it ends."""

import contextlib
import io
import os
import shutil
import subprocess
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from helpers.commands import arrays
from helpers.processes import STEPS, Run

from ddpm_jax.runs import saved_steps
from ddpm_jax.runs.metrics import read_metrics


class Bench(NamedTuple):
    """A folder for one try, the compilation cache, and the directory of an uninterrupted run."""

    folder: Path
    cache: Path
    uninterrupted: Path

    @property
    def workdir(self) -> Path:
        """The directory of the run in this folder."""
        return self.folder / "run"

    def run(self, *arguments: object, launcher: str = "", strict: bool = False) -> Run:
        """Start the run."""
        return Run(self.workdir, self.cache, *arguments, launcher=launcher, strict=strict)

    def resume(self) -> str:
        """Resume the run from its newest step to its end, and return its output.

        Its arrays and losses must equal those of the uninterrupted run, bit for bit.
        """
        with contextlib.redirect_stderr(io.StringIO()):
            start = saved_steps.newest(self.workdir)
        with self.run() as run:
            assert run.exit_status() == 0, run.output
        if start < STEPS:
            assert_starts_at(run, start, STEPS)
        pairs = zip(arrays(self.workdir, STEPS), arrays(self.uninterrupted, STEPS), strict=True)
        for resumed, expected in pairs:
            np.testing.assert_array_equal(resumed, expected)
        assert losses(self.workdir) == losses(self.uninterrupted)
        return run.output

    def copy_without_newest(self) -> None:
        """Copy the uninterrupted run without its newest checkpoint."""
        shutil.copytree(self.uninterrupted, self.workdir)
        shutil.rmtree(newest(self.workdir))

    @contextlib.contextmanager
    def small_disk(self) -> Iterator["Bench"]:
        """The same bench on a file system of 8 MB. Raise SkipTest if none can be mounted."""
        folder = self.folder / "disk"
        folder.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=8m", "none", folder], capture_output=True
        )
        if mounted.returncode:
            reason = mounted.stderr.decode().strip()
            raise unittest.SkipTest(f"No file system can be mounted here: {reason}")
        try:
            yield self._replace(folder=folder)
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


def assert_starts_at(run: Run, start: int, total: int) -> None:
    """Check that a run continued from a step, because one that starts afresh ends the same."""
    assert f"{total - start} steps from {start} to {total}" in run.output, run.output


def losses(workdir: Path) -> list[float]:
    """The losses in the log of a run."""
    return [line["loss"] for line in read_metrics(workdir / "metrics.jsonl")]


def newest(workdir: Path) -> Path:
    """The folder of the last step's checkpoint."""
    return workdir / saved_steps.FOLDER / str(STEPS)


def assert_clean_stop(run: Run, message: str) -> None:
    """Check that a run ends with status 2 and this message, and without a traceback."""
    assert run.exit_status() == 2, run.output
    assert message in run.output
    assert "Traceback" not in run.output, run.output


def make_bench(folder: Path) -> Bench:
    """Do the uninterrupted run, in which Python's warnings are errors.

    It shares compiled programs with the other tests if JAX_COMPILATION_CACHE_DIR is set.
    """
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or folder / "cache"
    bench = Bench(folder, Path(cache), folder / "run")
    with bench.run(strict=True) as run:
        assert run.exit_status() == 0, run.output
    return bench
