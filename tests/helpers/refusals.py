"""Check many invalid arguments in one test."""

import re
from collections.abc import Callable, Iterable
from typing import Any


def assert_refused(
    call: Callable[[Any], Any],
    cases: Iterable[tuple[Any, str]],
    error: type[Exception] = ValueError,
) -> None:
    """Assert that each `call(case)` raises `error` with one line that matches its pattern.

    The message of a failure names the case.
    """
    for case, pattern in cases:
        try:
            call(case)
        except error as raised:
            message = str(raised)
            assert re.search(pattern, message), f"{case}: {message!r} does not match {pattern!r}"
            assert "\n" not in message, f"{case}: {message!r} has more than one line"
        else:
            raise AssertionError(f"{case} did not raise {error.__name__} with {pattern!r}")
