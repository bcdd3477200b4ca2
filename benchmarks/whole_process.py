"""Rows about whole processes: training for three steps, beside PyTorch, and a first picture."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from cold_start import ROOT, write_images
from rows import OURS, TORCH_PROCESS, Goal, Net, Row
from sides import Side, ratio_of

STEPS = 3
TURNS = 3
TIME_GOALS = {"empty": 3.5, "filled": 1.8}
MEMORY_GOAL = 1.2
PICTURE_SECONDS = 6


class Process(NamedTuple):
    """The seconds of a process, and its peak memory in bytes."""

    seconds: float
    peak: int


def run(command: Sequence[str], env: dict[str, str] | None = None) -> Process:
    """Run a command in the repository. Raise RuntimeError with its last output if it fails.

    The peak is what the kernel reports. A child's peak is at least the memory of its parent, so
    this process must stay small.
    """
    env = os.environ | (env or {})
    with tempfile.TemporaryFile("w+") as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        if status:
            output.seek(0)
            raise RuntimeError(f"{' '.join(command)} failed: {output.read()[-1000:]}")
    return Process(seconds, usage.ru_maxrss * 1024)


def three_steps(net: Net, torch_python: str) -> Iterator[Row]:
    """Compare with PyTorch the time and peak memory of a process that trains three steps and saves.

    Each turn runs PyTorch's process, and ours twice: with an empty compilation cache, which it
    fills, and with the filled one. Every other turn, PyTorch comes last.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Side(sys.executable, OURS) as ours:
            ours.ask("load", net.recipe, net.batch_size, str(folder / "net"))
            write_images(folder / "images", net.batch_size, ours.ask("network")["image_shape"])
            if ours.ask("clip_norm") is not None:
                cause = f"{net.recipe} clips gradients, and torch_process.py does not"
                raise ValueError(f"{cause}: choose other --nets.")
        turns = []
        for number in range(TURNS):
            turn = folder / str(number)
            turn.mkdir()
            turns.append(take_turn(net, folder, turn, torch_python, number % 2 == 1))
    theirs, *ours = zip(*turns, strict=True)
    for cache, processes in zip(TIME_GOALS, ours, strict=True):
        times = ratio_of([p.seconds for p in processes], [p.seconds for p in theirs])
        measurement = (
            f"time of a process of {STEPS} training steps and a checkpoint, relative to PyTorch, "
            f"compilation cache {cache}"
        )
        our_seconds, torch_seconds = times.medians
        details = f"ours {our_seconds:.1f} s, PyTorch (eager) {torch_seconds:.1f} s, {TURNS} turns"
        yield Row(measurement, net.recipe, times, Goal("<=", TIME_GOALS[cache]), details)
    for cache, processes in zip(TIME_GOALS, ours, strict=True):
        peaks = ratio_of([p.peak for p in processes], [p.peak for p in theirs])
        measurement = f"peak memory of this process relative to PyTorch, compilation cache {cache}"
        details = "ours {:.0f} MiB, PyTorch (eager) {:.0f} MiB".format(
            *(peak / 2**20 for peak in peaks.medians)
        )
        yield Row(measurement, net.recipe, peaks, Goal("<=", MEMORY_GOAL), details)


def take_turn(
    net: Net, folder: Path, turn: Path, torch_python: str, ours_first: bool
) -> tuple[Process, ...]:
    """Run PyTorch, and train.py with an empty and with a filled compilation cache."""
    images = str(folder / "images")
    length = ["--batch-size", str(net.batch_size), "--steps", str(STEPS)]
    unet = str(folder / "net" / "unet")
    torch_command = [torch_python, TORCH_PROCESS, unet, images, str(turn / "torch"), *length]
    env = {"JAX_COMPILATION_CACHE_DIR": str(turn / "cache")}
    command = [sys.executable, "train.py", "--config", net.recipe, "--data", "folder"]
    command += ["--data.path", images, "--training.batch-size", str(net.batch_size)]
    command += ["--training.steps", str(STEPS), "--log.samples", "0", "--data.flip"]
    command += ["--model.dropout", "0", "--workdir"]
    names = ["torch", *TIME_GOALS]
    commands = {
        "torch": torch_command,
        **{name: [*command, str(turn / name)] for name in TIME_GOALS},
    }
    order = [*TIME_GOALS, "torch"] if ours_first else names
    processes = {name: run(commands[name], env) for name in order}
    return tuple(processes[name] for name in names)


def first_picture(pairs: int) -> Iterator[Row]:
    """Measure the time in which sample.py draws digits, with a filled compilation cache."""
    with tempfile.TemporaryDirectory() as folder:
        env = {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"}
        command = [sys.executable, "sample.py", "--ckpt", "digits", "--out", f"{folder}/a.png"]
        run(command, env)
        seconds = sorted(run(command, env).seconds for _ in range(pairs))
    measurement = "time of sample.py --ckpt digits, compilation cache filled"
    details = f"{seconds[0]:.1f} to {seconds[-1]:.1f} s"
    goal = Goal("<=", PICTURE_SECONDS)
    yield Row(measurement, "digits", statistics.median(seconds), goal, details, " s")
