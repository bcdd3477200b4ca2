"""Probe a server before a download, because the download libraries retry for minutes."""

import contextlib
import threading
from collections.abc import Callable


def is_reachable(request: Callable[[], object], seconds: float) -> bool:
    """Whether `request()` returns within `seconds` and does not raise.

    The request runs in a daemon thread, because the timeout of a connection does not bound the DNS
    lookup.
    """
    answers = []

    def ask() -> None:
        # The type of the error depends on the HTTP library and its version.
        with contextlib.suppress(Exception):
            answers.append(request())

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(answers)
