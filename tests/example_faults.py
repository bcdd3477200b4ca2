"""A real training run in a process of its own, and what is done to it."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from example_commands import TINY

from ddpm_jax.run_log import read_metrics

ROOT = Path(__file__).parents[1]
STEPS, EVERY = 24, 3
SETTINGS = [*TINY, "--training.steps", str(STEPS), "--checkpoint.every", str(EVERY), "--log.samples", "0"]
ENV = {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}


class Run:
    """`python train.py` on a tiny recipe in `workdir`; killed at the latest when the block ends.

    `launcher` is Python that is run first and becomes it.
    """

    def __init__(self, workdir: Path, cache: Path, *more: object, launcher: str = ""):
        args = [item for item in SETTINGS if item != "--no-compilation-cache"]
        start = [sys.executable, "-c", launcher] if launcher else [sys.executable]
        command = [*start, "train.py", *args, "--workdir", workdir, *map(str, more)]
        env = os.environ | ENV | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
        self.workdir = workdir
        self._words = open(workdir.parent / f"{workdir.name}.words", "w+")  # noqa: SIM115 - closed at the end
        self.process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=self._words, stderr=subprocess.STDOUT)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._words.close()

    @property
    def step(self) -> int:
        """The last step in its log, 0 before the first."""
        path = self.workdir / "metrics.jsonl"
        lines = read_metrics(path) if path.exists() else []
        return lines[-1]["step"] if lines else 0

    @property
    def words(self) -> str:
        """All it has printed."""
        return Path(self._words.name).read_text()

    def reaches(self, step: int, seconds: float = 120) -> None:
        """Waits for that step in its log; AssertionError where it ends before."""
        until = time.perf_counter() + seconds
        while self.step < step:
            assert self.process.poll() is None, self.words
            assert time.perf_counter() < until, self.words
            time.sleep(0.005)

    def ends(self, *signals: signal.Signals, seconds: float = 120) -> int:
        """Its exit status after these signals."""
        for number in signals:
            self.process.send_signal(number)
        return self.process.wait(seconds)


def flip(path: Path, moment: random.Random) -> None:
    """Turns one bit of a file around."""
    content = bytearray(path.read_bytes())
    bit = moment.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
