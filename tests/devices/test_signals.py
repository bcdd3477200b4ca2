"""Signals to a process that runs Python code, or is stuck in one long call."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from helpers.processes import default_signals

from ddpm_jax.devices.signals import SIGNALS, StopSignal

STUCK = """
import hashlib
from ddpm_jax.devices.signals import StopSignal
with StopSignal():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""
"""A program that is stuck in one call, during which Python runs no handler."""


@pytest.fixture(autouse=True)
def not_ignored():
    with default_signals():
        yield


def wait_for(condition, seconds=20):
    deadline = time.perf_counter() + seconds
    while not condition():
        assert time.perf_counter() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("second", [number for number in SIGNALS if number != signal.SIGHUP])
@pytest.mark.parametrize("first", SIGNALS)
def test_the_first_signal_is_reported_and_the_second_exits(monkeypatch, capfd, first, second):
    statuses = []
    monkeypatch.setattr(os, "_exit", statuses.append)
    with StopSignal() as stop:
        os.kill(os.getpid(), first)
        wait_for(lambda: stop.signal)
        # A closed terminal sends SIGHUP more than once.
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), second)
        wait_for(lambda: statuses)
    assert stop.signal == first
    assert statuses == [128 + second]
    assert f"{first.name}: stopping after this step" in capfd.readouterr().err


def test_a_second_signal_ends_a_process_that_is_stuck():
    command = [sys.executable, "-c", STUCK]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGTERM)
            # The message starts with an empty line.
            message = process.stderr.readline() + process.stderr.readline()
            assert "SIGTERM: stopping after this step" in message
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) == 128 + signal.SIGINT
        finally:
            process.kill()


def test_the_old_handlers_are_restored():
    before = [signal.getsignal(number) for number in SIGNALS]
    for _ in range(2):
        with StopSignal() as stop:
            assert stop.signal == 0
            assert signal.getsignal(signal.SIGINT) is not before[1]
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_an_ignored_signal_stays_ignored():
    """`nohup` ignores SIGHUP, and a shell SIGINT in a command that ends in &."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGINT)
            wait_for(lambda: stop.signal)
            assert stop.signal == signal.SIGINT
    finally:
        signal.signal(signal.SIGHUP, before)


def test_nothing_is_caught_in_another_thread():
    signals = []

    def work():
        with StopSignal() as stop:
            signals.append(stop.signal)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert signals == [0]
