"""Signals to a process that works in Python, sleeps, or is stuck in one long call."""

import signal
import subprocess
import sys
import threading
import time

import pytest

from ddpm_jax.devices.signals import Interruption

WORK = """
import sys, time
from ddpm_jax.interruption import Interruption
with Interruption() as stop:
    print("ready", flush=True)
    {work}
sys.exit(128 + stop.signal)
"""
POLITE = "while not stop.signal: time.sleep(0.01)"
STUCK = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"  # one call, in which no handler runs


def ends(work, *signals):
    """The exit status of a process after these signals, one after another."""
    command = [sys.executable, "-c", WORK.format(work=work)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        for number in signals:
            process.send_signal(number)
            time.sleep(0.2)
        try:
            _, words = process.communicate(timeout=20)
        finally:
            process.kill()
    return process.returncode, words


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_seen_and_told(number):
    status, words = ends(POLITE, number)
    assert status == 128 + number
    assert f"{number.name}: stops after this step" in words
    assert "Traceback" not in words


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_one_ends_even_what_is_stuck(second):
    assert ends(STUCK, signal.SIGTERM, second)[0] == 128 + second


def test_handlers_are_as_before_afterwards():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    for _ in range(2):
        with Interruption() as stop:
            assert stop.signal == 0
            assert signal.getsignal(signal.SIGINT) is not before[1]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_in_another_thread_nothing_is_caught():
    caught = []

    def work():
        with Interruption() as stop:
            caught.append(stop.signal)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert caught == [0]
