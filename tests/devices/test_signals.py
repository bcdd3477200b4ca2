"""Signals to a process that works in Python, sleeps, or is stuck in one long call."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from ddpm_jax.devices.signals import SIGNALS, StopSignal

STUCK = """
import hashlib
from ddpm_jax.devices.signals import Interruption
with Interruption():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""
"""One call in which Python runs no handler."""


def wait_for(condition, seconds=20):
    until = time.perf_counter() + seconds
    while not condition():
        assert time.perf_counter() < until
        time.sleep(0.001)


@pytest.mark.parametrize("second", SIGNALS)
@pytest.mark.parametrize("first", SIGNALS)
def test_the_first_signal_is_told_and_the_second_exits(monkeypatch, capfd, first, second):
    ends = []
    monkeypatch.setattr(os, "_exit", ends.append)
    with StopSignal() as stop:
        os.kill(os.getpid(), first)
        wait_for(lambda: stop.signal)
        assert stop.signal == first
        assert not ends
        os.kill(os.getpid(), second)
        wait_for(lambda: ends)
    assert ends == [128 + second]
    assert f"{first.name}: stops after this step" in capfd.readouterr().err


def test_a_second_signal_ends_a_process_that_is_stuck():
    command = [sys.executable, "-c", STUCK]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGTERM)
            told = process.stderr.readline() + process.stderr.readline()
            assert "SIGTERM: stops after this step" in told
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) == 128 + signal.SIGINT
        finally:
            process.kill()


def test_handlers_are_as_before_afterwards():
    before = [signal.getsignal(number) for number in SIGNALS]
    for _ in range(2):
        with StopSignal() as stop:
            assert stop.signal == 0
            assert signal.getsignal(signal.SIGINT) is not before[1]
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_in_another_thread_nothing_is_caught():
    caught = []

    def work():
        with StopSignal() as stop:
            caught.append(stop.signal)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert caught == [0]
