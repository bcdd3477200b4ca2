"""A real training run in a process of its own, and what is done to it."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from helpers.commands import TINY

from ddpm_jax.runs.metrics import read_metrics

ROOT = Path(__file__).parents[2]
STEPS, EVERY = 16, 4
SETTINGS = [
    *TINY,
    "--training.steps",
    str(STEPS),
    "--checkpoint.every",
    str(EVERY),
    "--log.samples",
    "0",
]
ENV = {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}
ENV["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # halves the time; see conftest.py
# Keep small programs too, which --compilation-cache would not, and lock the directory.
ENV |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
ENV |= {"JAX_COMPILATION_CACHE_MAX_SIZE": str(4 * 2**30)}


class Run:
    """`python train.py` on a tiny recipe in `workdir`; killed at the latest when the block ends.

    `launcher` is Python that is run first and becomes it, `environment` is added to that of this process.
    With `strict` a warning of Python is an error.
    """

    def __init__(
        self,
        workdir: Path,
        cache: Path,
        *more: object,
        launcher: str = "",
        strict: bool = False,
        **environment: str,
    ):
        start = [sys.executable, "-c", launcher] if launcher else [sys.executable]
        start += ["-W", "error"] if strict else []
        command = [*start, "train.py", *SETTINGS, "--workdir", workdir, *map(str, more)]
        env = os.environ | ENV | {"JAX_COMPILATION_CACHE_DIR": str(cache)} | environment
        self.workdir = workdir
        self._out, self._said = tempfile.NamedTemporaryFile("w+"), ""  # noqa: SIM115 - closed at the end
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=self._out, stderr=subprocess.STDOUT
        )

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._said = self.words
        self._out.close()

    @property
    def step(self) -> int:
        """The last step in its log, 0 before the first."""
        path = self.workdir / "metrics.jsonl"
        lines = read_metrics(path) if path.exists() else []
        return lines[-1]["step"] if lines else 0

    @property
    def words(self) -> str:
        """All it has printed."""
        return self._said if self._out.closed else Path(self._out.name).read_text()

    def reaches(self, step: int, seconds: float = 120) -> None:
        """Waits for that step in its log; AssertionError where it ends before."""
        until = time.perf_counter() + seconds
        while self.step < step:
            assert self.process.poll() is None, self.words
            assert time.perf_counter() < until, self.words
            time.sleep(0.005)

    def says(self, words: str, seconds: float = 120) -> None:
        """Waits until it has printed that."""
        until = time.perf_counter() + seconds
        while words not in self.words:
            assert time.perf_counter() < until, self.words
            time.sleep(0.005)

    def ends(self, *signals: signal.Signals, seconds: float = 120) -> int:
        """Its exit status after these signals."""
        for number in signals:
            self.process.send_signal(number)
        return self.process.wait(seconds)


def free_address() -> str:
    """HOST:PORT of this machine at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def several(count: int, workdir: Path, cache: Path, *more: object) -> list[Run]:
    """A run on so many hosts, the first one first."""
    found = ["--coordinator", free_address(), "--hosts", count]
    return [Run(workdir, cache, *found, "--host", host, *more) for host in range(count)]


def slurm(count: int, workdir: Path, cache: Path, *more: object) -> list[Run]:
    """The same as Slurm starts it: every process finds in its environment which it is, and JAX a port from the job."""
    job = random.Random(str(workdir)).randrange(2**20)
    known = {
        "SLURM_JOB_ID": str(job),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(count),
    }
    which = [{"SLURM_PROCID": str(host), "SLURM_LOCALID": str(host)} for host in range(count)]
    return [Run(workdir, cache, "--coordinator", "auto", *more, **known, **one) for one in which]


WITHOUT_PRIVILEGES = """
import ctypes, os, sys
for capability in (1, 2, 3) if os.getuid() == 0 else ():  # DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER: root writes by these
    assert ctypes.CDLL(None).prctl(24, capability, 0, 0, 0) == 0  # PR_CAPBSET_DROP
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (%d, %d))
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def fill(place: Path) -> Path:
    """Takes what is left of a disk; the file that does it."""
    ballast = place / "ballast"
    with ballast.open("wb") as file, contextlib.suppress(OSError):
        while True:
            os.write(file.fileno(), bytes(4096))
    return ballast


def flip(path: Path, moment: random.Random) -> None:
    """Turns one bit of a file around."""
    content = bytearray(path.read_bytes())
    bit = moment.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
