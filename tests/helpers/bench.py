"""A place to try a fault in, and what a run in it has to come to."""

import contextlib
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

from ddpm_jax.runs import steps as saved_steps
from ddpm_jax.runs.metrics import read_metrics


class Bench(NamedTuple):
    """A folder for one try, the compiled programs, and a run without a fault."""

    folder: Path
    cache: Path
    straight: Path

    @property
    def workdir(self) -> Path:
        return self.folder / "run"

    def run(self, *more: object, launcher: str = "", strict: bool = False) -> Run:
        return Run(self.workdir, self.cache, *more, launcher=launcher, strict=strict)

    def goes_on(self) -> str:
        """What the same command says when it ends as the straight run did, bit for bit, in arrays and in losses."""
        with self.run() as run:
            assert run.ends() == 0, run.words
        for ours, wanted in zip(
            arrays(self.workdir, STEPS), arrays(self.straight, STEPS), strict=True
        ):
            np.testing.assert_array_equal(ours, wanted)
        assert losses(self.workdir) == losses(self.straight)
        return run.words

    def half_way(self) -> None:
        """A copy of the straight run as it was at its last checkpoint but one."""
        shutil.copytree(self.straight, self.workdir)
        shutil.rmtree(newest(self.workdir))

    @contextlib.contextmanager
    def small_disk(self) -> Iterator["Bench"]:
        """The same on a file system of 8 MB; SkipTest where this process may mount none."""
        place = self.folder / "disk"
        place.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=8m", "none", place], capture_output=True
        )
        if mounted.returncode:
            raise unittest.SkipTest(
                f"no file system may be mounted here: {mounted.stderr.decode().strip()}"
            )
        try:
            yield self._replace(folder=place)
        finally:
            subprocess.run(["umount", "--lazy", place], check=True)


def losses(workdir: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(workdir / "metrics.jsonl")]


def newest(workdir: Path) -> Path:
    return workdir / saved_steps.FOLDER / str(STEPS)


def stopped_cleanly(run: Run, words: str) -> None:
    """It ended with one line of error that says this, and no traceback of any thread."""
    assert run.ends() == 2, run.words
    assert words in run.words
    assert "Traceback" not in run.words, run.words


def straight(folder: Path) -> Bench:
    """Do a run without a fault, to try faults beside; in it a warning of Python is an error.

    Compiled programs are shared with the other tests of this session, where there are such.
    """
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or folder / "cache"
    bench = Bench(folder, Path(cache), folder / "run")
    with bench.run(strict=True) as run:
        assert run.ends() == 0, run.words
    return bench
