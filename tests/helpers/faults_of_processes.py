"""Faults of processes: killed or signalled runs and second runs, on one host and on two.

The docstring of each fault is its row in the table of `tests/faults.py`. Each returns the number of
training steps that the run had to repeat.
"""

import contextlib
import random
import shutil
import signal
import time

import numpy as np
from helpers.bench import Bench, assert_clean_stop, assert_starts_at, losses
from helpers.processes import EVERY, NO_OUTPUT, STEPS, run_on_hosts

from ddpm_jax.runs import manifest, saved_steps

EXIT_SECONDS: list[float] = []
"""Seconds from each signal to the exit of the process, its last step and save included."""
KILLED_IN_SAVE: list[bool] = []
"""Whether each SIGKILL left a checkpoint that was not complete."""


def kill(bench: Bench, step: int, rng: random.Random) -> int:
    """Start the run, kill it shortly after a step, and return the last step in its log."""
    with bench.run() as run:
        run.wait_for_step(step)
        time.sleep(rng.random() * 0.05)
        assert run.exit_status(signal.SIGKILL) == -signal.SIGKILL, run.output
    folders = (run.workdir / saved_steps.FOLDER).glob("*")
    KILLED_IN_SAVE.append(any(manifest.find_corruption(x) for x in folders))
    assert run.step - saved_steps.newest(run.workdir) <= EVERY
    return run.step


def stop(bench: Bench, number: signal.Signals, step: int) -> None:
    """Start the run and signal it after a step. It must save and exit with 128 + the signal."""
    with bench.run() as run:
        run.wait_for_step(step)
        step_before = run.step
        start = time.perf_counter()
        assert run.exit_status(number) == 128 + number, run.output
        EXIT_SECONDS.append(time.perf_counter() - start)
    saved = saved_steps.newest(run.workdir)
    assert f"stopped: step {saved} of {STEPS} is saved" in run.output
    assert "Traceback" not in run.output, run.output
    assert step_before <= saved < STEPS


def hang_up(bench: Bench, step: int) -> None:
    """Start the run with no reader of stdout and no stderr, and close its terminal after a step.

    The kernel and the shell both send SIGHUP. The run must save and exit with 129. If they arrive
    one by one, the second must not end the run before that.
    """
    with bench.run(launcher=NO_OUTPUT) as run:
        run.wait_for_step(step)
        run.process.send_signal(signal.SIGHUP)
        time.sleep(0.002)
        assert run.exit_status(signal.SIGHUP) == 129
    assert step <= saved_steps.newest(run.workdir) == run.step < STEPS


def killed(bench: Bench, rng: random.Random) -> int:
    """SIGKILL at any moment, also during a save."""
    done = kill(bench, rng.randrange(1, STEPS - 1), rng)
    repeated = done - saved_steps.newest(bench.workdir)
    bench.resume()
    return max(repeated, 0)


def signalled(bench: Bench, rng: random.Random) -> int:
    """SIGTERM or SIGINT at any moment: the step is saved, the exit status is 143 or 130."""
    number = rng.choice([signal.SIGTERM, signal.SIGINT])
    stop(bench, number, rng.randrange(1, STEPS - 4))
    bench.resume()
    return 0


def signalled_twice(bench: Bench, rng: random.Random) -> int:
    """A second SIGTERM: the run exits at once with status 143, and does not save its step."""
    with bench.run("--training.steps", 10**6) as run:
        run.wait_for_step(rng.randrange(1, STEPS))
        run.process.send_signal(signal.SIGTERM)
        # Two signals that are sent at once may arrive as one.
        run.wait_for_output("a second signal exits at once")
        assert run.exit_status(signal.SIGTERM) == 143, run.output
    assert "stopped: step" not in run.output, run.output
    repeated = run.step - saved_steps.newest(run.workdir)
    assert repeated <= EVERY
    shutil.rmtree(run.workdir)
    return max(repeated, 0)


def hung_up(bench: Bench, rng: random.Random) -> int:
    """SIGHUP, nobody reads stdout, stderr is closed: the step is saved, the exit status is 129."""
    hang_up(bench, rng.randrange(1, STEPS - 4))
    bench.resume()
    return 0


def second_run(bench: Bench, rng: random.Random) -> int:
    """A second run in the same directory: it is refused, and the first one continues."""
    with bench.run("--training.steps", 10**6) as first:
        first.wait_for_step(rng.randrange(1, STEPS))
        with bench.run() as second:
            assert_clean_stop(second, "error: Another run is using")
        first.wait_for_step(first.step + 2)
    return 0


def host_killed(bench: Bench, rng: random.Random) -> int:
    """SIGKILL to one of two hosts: the other ends within 60 s with a message, and a single host
    resumes the run.
    """
    lost = rng.randrange(2)
    length = ("--training.steps", 10**6)
    with contextlib.ExitStack() as stack:
        started = run_on_hosts(2, bench.workdir, bench.cache, *length)
        runs = [stack.enter_context(run) for run in started]
        runs[0].wait_for_step(EVERY + 1)
        assert runs[lost].exit_status(signal.SIGKILL) == -signal.SIGKILL, runs[lost].output
        # JAX aborts the process if its coordination service notices first.
        status = runs[1 - lost].exit_status(seconds=60)
        assert status > 0 or status == -signal.SIGABRT
    output = runs[1 - lost].output
    assert "Another host failed" in output or "distributed service" in output, output
    repeated = runs[0].step - saved_steps.newest(bench.workdir)
    assert repeated <= EVERY
    saved = saved_steps.newest(bench.workdir)
    total = runs[0].step + STEPS
    with bench.run("--training.steps", total) as run:
        assert run.exit_status() == 0, run.output
    assert_starts_at(run, saved, total)
    return max(repeated, 0)


def host_signalled(bench: Bench, rng: random.Random) -> int:
    """SIGTERM to one of two hosts: both save the same step and exit with 143."""
    with contextlib.ExitStack() as stack:
        started = run_on_hosts(2, bench.workdir, bench.cache)
        runs = [stack.enter_context(run) for run in started]
        runs[0].wait_for_step(rng.randrange(1, STEPS - 6))
        statuses = [runs[1].exit_status(signal.SIGTERM), runs[0].exit_status()]
    assert statuses == [143, 143], "\n".join(run.output for run in runs)
    step = saved_steps.newest(bench.workdir)
    assert f"stopped: step {step} of {STEPS} is saved" in runs[0].output
    with bench.run() as run:
        assert run.exit_status() == 0, run.output
    assert_starts_at(run, step, STEPS)
    np.testing.assert_allclose(losses(bench.workdir), losses(bench.uninterrupted), rtol=1e-3)
    return 0
