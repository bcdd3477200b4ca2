"""Catch signals that ask to stop: one stops the run after its step, a second exits at once."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that ask a run to stop. SIGHUP says that its terminal was closed."""


class StopSignal:
    """A context whose `signal` is the number of the first signal that arrives in it, and 0 before.

    A signal that the process ignored stays ignored: `nohup` ignores SIGHUP. SIGHUP does not count
    as a second signal, because the kernel and the shell of a closed terminal both send it.

    A thread reads the signals from a socket, because Python runs handlers in the main thread, which
    one call of XLA may block for a minute. A context entered in another thread, where Python
    accepts no handlers, catches nothing.
    """

    def __init__(self) -> None:
        self.signal = 0

    def __enter__(self) -> StopSignal:
        self._active = threading.current_thread() is threading.main_thread()
        if self._active:
            self._reader, self._writer = socket.socketpair()
            self._writer.setblocking(False)
            self._old_wakeup = signal.set_wakeup_fd(
                self._writer.fileno(), warn_on_full_buffer=False
            )
            # Python writes a signal to the socket only if the signal has a handler.
            self._old_handlers = {
                number: signal.signal(number, lambda *_: None)
                for number in SIGNALS
                if signal.getsignal(number) != signal.SIG_IGN
            }
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._active:
            for number, handler in self._old_handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._old_wakeup)
            # Closing the writer ends the thread.
            self._writer.close()
            self._thread.join()
            self._reader.close()

    def _watch(self) -> None:
        while number := self._reader.recv(1):
            if number[0] not in SIGNALS:
                continue
            if not self.signal:
                self.signal = number[0]
                self._report()
            elif number[0] != signal.SIGHUP:
                os._exit(128 + number[0])

    def _report(self) -> None:
        name = signal.Signals(self.signal).name
        # A failure must not end the thread, which waits for the second signal.
        with contextlib.suppress(OSError, ValueError):
            print(
                f"\n{name}: stopping after this step, which is saved; "
                "a second signal exits at once.",
                file=sys.stderr,
                flush=True,
            )
