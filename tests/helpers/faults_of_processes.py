"""Faults of processes: killed, asked to stop, two where one may be; on one host and on two."""

import contextlib
import random
import shutil
import signal
import time

import numpy as np
from helpers.bench import Bench, losses, stopped_cleanly
from helpers.processes import EVERY, STEPS, several

from ddpm_jax.runs import steps as saved_steps

WAITS: list[float] = []
"""Seconds from a signal to the end of the process, its step and its save included."""


def kill(bench: Bench, step: int, moment: random.Random) -> int:
    """Start the run and kill it some time after a step; returns the last step in its log."""
    with bench.run() as run:
        run.reaches(step)
        time.sleep(moment.random() * 0.05)
        assert run.ends(signal.SIGKILL) == -signal.SIGKILL, run.words
    assert run.step - saved_steps.newest(run.workdir) <= EVERY
    return run.step


def stop(bench: Bench, number: signal.Signals, step: int) -> None:
    """Start the run and send it a signal after a step: it saves and ends with that status."""
    with bench.run() as run:
        run.reaches(step)
        before, began = run.step, time.perf_counter()
        assert run.ends(number) == 128 + number, run.words
        WAITS.append(time.perf_counter() - began)
    step = saved_steps.newest(run.workdir)
    assert f"stopped: step {step} of {STEPS} is saved" in run.words
    assert "Traceback" not in run.words, run.words
    assert before <= step < STEPS


def killed(bench: Bench, moment: random.Random) -> int:
    """SIGKILL at any moment, saves under way included"""
    done = kill(bench, moment.randrange(1, STEPS - 1), moment)
    again = done - saved_steps.newest(bench.workdir)
    bench.goes_on()
    return max(again, 0)


def signalled(bench: Bench, moment: random.Random) -> int:
    """SIGTERM or SIGINT at any moment: the step is saved, the exit status is 143 or 130"""
    number = moment.choice([signal.SIGTERM, signal.SIGINT])
    stop(bench, number, moment.randrange(1, STEPS - 4))
    bench.goes_on()
    return 0


def signalled_twice(bench: Bench, moment: random.Random) -> int:
    """a second signal: the end at once, with its status"""
    with bench.run("--training.steps", 10**6) as run:
        run.reaches(moment.randrange(1, STEPS))
        assert run.ends(signal.SIGTERM, signal.SIGTERM) == 143, run.words
    again = run.step - saved_steps.newest(run.workdir)
    assert again <= EVERY
    shutil.rmtree(run.workdir)
    return max(again, 0)


def second_run(bench: Bench, moment: random.Random) -> int:
    """a second run in the same directory: it is refused, the first goes on"""
    with bench.run("--training.steps", 10**6) as first:
        first.reaches(moment.randrange(1, STEPS))
        with bench.run() as second:
            stopped_cleanly(second, "error: another run is at work in")
        first.reaches(first.step + 2)
    return 0


def host_killed(bench: Bench, moment: random.Random) -> int:
    """SIGKILL to one of two hosts: the other ends within 60 s with a message, and one host alone goes on"""
    gone = moment.randrange(2)
    with contextlib.ExitStack() as stack:
        runs = [
            stack.enter_context(run)
            for run in several(2, bench.workdir, bench.cache, "--training.steps", 10**6)
        ]
        runs[0].reaches(EVERY + 1)
        runs[gone].ends(signal.SIGKILL)
        assert (
            runs[1 - gone].ends(seconds=60) > 0
            or runs[1 - gone].process.returncode == -signal.SIGABRT
        )
    words = runs[1 - gone].words
    assert "another host is gone" in words or "distributed service" in words, words
    again = runs[0].step - saved_steps.newest(bench.workdir)
    assert again <= EVERY
    with bench.run("--training.steps", runs[0].step + STEPS) as run:
        assert run.ends() == 0, run.words
    return max(again, 0)


def host_signalled(bench: Bench, moment: random.Random) -> int:
    """SIGTERM to one of two hosts: both save the same step and end with 143"""
    with contextlib.ExitStack() as stack:
        runs = [stack.enter_context(run) for run in several(2, bench.workdir, bench.cache)]
        runs[0].reaches(moment.randrange(1, STEPS - 6))
        statuses = [runs[1].ends(signal.SIGTERM), runs[0].ends()]
    assert statuses == [143, 143], "\n".join(run.words for run in runs)
    step = saved_steps.newest(bench.workdir)
    assert f"stopped: step {step} of {STEPS} is saved" in runs[0].words
    with bench.run() as run:
        assert run.ends() == 0, run.words
    np.testing.assert_allclose(losses(bench.workdir), losses(bench.straight), rtol=1e-3)
    return 0
