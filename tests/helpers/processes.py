"""A real training run in a process of its own, and what tests do to it."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from helpers.commands import TINY

from ddpm_jax.devices.signals import SIGNALS
from ddpm_jax.runs.metrics import read_metrics

ROOT = Path(__file__).parents[2]
STEPS = 16
EVERY = 4
LENGTH = ["--training.steps", str(STEPS), "--checkpoint.every", str(EVERY)]
SETTINGS = [*TINY, *LENGTH, "--log.samples", "0"]
ENV = {
    "JAX_NUM_CPU_DEVICES": "1",
    "JAX_PLATFORMS": "cpu",
    "PYTHONUNBUFFERED": "1",
    # Halves the time, as conftest.py says.
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    # Small programs are cached too, which --compilation-cache would not do.
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    # JAX locks the directory only if its size has a limit.
    "JAX_COMPILATION_CACHE_MAX_SIZE": str(4 * 2**30),
}


@contextlib.contextmanager
def default_signals() -> Iterator[None]:
    """Reset the ignored signals, such as SIGHUP under `nohup`, for this block and its processes."""
    ignored = [number for number in SIGNALS if signal.getsignal(number) == signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)


class Run:
    """`python train.py` on a tiny recipe in `workdir`. The end of the block kills the process.

    `launcher` is Python code that runs first and then executes train.py in its place.
    `environment` is added to the variables of this process. `strict` turns Python's warnings into
    errors.
    """

    def __init__(
        self,
        workdir: Path,
        cache: Path,
        *arguments: object,
        launcher: str = "",
        strict: bool = False,
        **environment: str,
    ):
        python = [sys.executable, "-c", launcher] if launcher else [sys.executable]
        python += ["-W", "error"] if strict else []
        command = [*python, "train.py", *SETTINGS, "--workdir", workdir, *map(str, arguments)]
        env = os.environ | ENV | {"JAX_COMPILATION_CACHE_DIR": str(cache)} | environment
        self.workdir = workdir
        # __exit__ closes the file.
        self._file = tempfile.NamedTemporaryFile("w+")  # noqa: SIM115
        self._final_output = ""
        with default_signals():
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=env, stdout=self._file, stderr=subprocess.STDOUT
            )

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._final_output = self.output
        self._file.close()

    @property
    def step(self) -> int:
        """The last step in its log; 0 before the first."""
        path = self.workdir / "metrics.jsonl"
        lines = read_metrics(path) if path.exists() else []
        return lines[-1]["step"] if lines else 0

    @property
    def output(self) -> str:
        """Everything that it has printed on stdout and stderr."""
        return self._final_output if self._file.closed else Path(self._file.name).read_text()

    def wait_for_step(self, step: int, seconds: float = 120) -> None:
        """Wait until a step is in its log. Raise AssertionError if it ends before that."""
        deadline = time.perf_counter() + seconds
        while self.step < step:
            assert self.process.poll() is None, self.output
            assert time.perf_counter() < deadline, self.output
            time.sleep(0.005)

    def wait_for_output(self, text: str, seconds: float = 120) -> None:
        """Wait until it has printed a text."""
        deadline = time.perf_counter() + seconds
        while text not in self.output:
            assert time.perf_counter() < deadline, self.output
            time.sleep(0.005)

    def exit_status(self, *signals: signal.Signals, seconds: float = 120) -> int:
        """Send it these signals, wait until it ends, and return its exit status."""
        for number in signals:
            self.process.send_signal(number)
        return self.process.wait(seconds)


def free_address() -> str:
    """HOST:PORT of this machine with an unused port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def run_on_hosts(num_hosts: int, workdir: Path, cache: Path, *arguments: object) -> list[Run]:
    """Start the processes of a run on several hosts, the primary host first."""
    hosts = ["--coordinator", free_address(), "--hosts", num_hosts]
    return [Run(workdir, cache, *hosts, "--host", host, *arguments) for host in range(num_hosts)]


def run_under_slurm(num_hosts: int, workdir: Path, cache: Path, *arguments: object) -> list[Run]:
    """Start the same processes with the environment that Slurm would give them.

    JAX chooses the port by the number of the job.
    """
    job = random.Random(str(workdir)).randrange(2**20)
    environment = {
        "SLURM_JOB_ID": str(job),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(num_hosts),
    }
    runs = []
    for host in range(num_hosts):
        task = {"SLURM_PROCID": str(host), "SLURM_LOCALID": str(host)}
        coordinator = ("--coordinator", "auto")
        runs.append(Run(workdir, cache, *coordinator, *arguments, **environment, **task))
    return runs


# PR_CAPBSET_DROP (24) takes DAC_OVERRIDE, DAC_READ_SEARCH and FOWNER (1 to 3) from root, which let
# it write to read-only files.
DROP_PRIVILEGES = """
import ctypes, os, sys
for capability in (1, 2, 3) if os.getuid() == 0 else ():
    assert ctypes.CDLL(None).prctl(24, capability, 0, 0, 0) == 0
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
NO_OUTPUT = """
import os, sys
reader, writer = os.pipe()
os.close(reader)
os.dup2(writer, 1)
os.close(2)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
LIMIT_FILE_SIZE = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (%d, %d))
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def fill_disk(folder: Path) -> Path:
    """Fill the disk of a folder with one file, and return its path."""
    ballast = folder / "ballast"
    with ballast.open("wb") as file, contextlib.suppress(OSError):
        while True:
            os.write(file.fileno(), bytes(4096))
    return ballast


def flip_bit(path: Path, rng: random.Random) -> None:
    """Flip one random bit of a file."""
    content = bytearray(path.read_bytes())
    bit = rng.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
