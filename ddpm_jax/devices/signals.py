"""SIGTERM and SIGINT: the first asks a run to stop at its next step, a second one ends it at once."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """While it is entered, `signal` is the first of the signals that came, 0 before.

    They are read from a socket by a thread, since Python's own handlers wait for the main thread, which may be in one
    call of XLA for a minute. Elsewhere than in the main thread, where Python takes no handlers, nothing is caught.
    """

    def __init__(self) -> None:
        self.signal = 0

    def __enter__(self) -> StopSignal:
        self._caught = threading.current_thread() is threading.main_thread()
        if self._caught:
            self._reader, self._writer = socket.socketpair()
            self._writer.setblocking(False)
            self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
            self._before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._caught:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._wakeup)
            self._writer.close()  # which ends the thread
            self._thread.join()
            self._reader.close()

    def _watch(self) -> None:
        while number := self._reader.recv(1):
            if number[0] not in SIGNALS:
                continue
            if self.signal:
                os._exit(128 + number[0])
            self.signal = number[0]
            name = signal.Signals(self.signal).name
            print(
                f"\n{name}: stops after this step and saves; once more ends at once",
                file=sys.stderr,
                flush=True,
            )
