"""Standard output that ends no command: a closed pipe or terminal, a full disk, an encoding."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, cast


class Output:
    """A stream that drops text which cannot be written. Its other attributes are the stream's."""

    def __init__(self, stream: Any):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text. A character outside the stream's encoding is written as an escape."""
        # A closed stream raises ValueError.
        with contextlib.suppress(OSError, ValueError):
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                escaped = text.encode(self._stream.encoding, "backslashreplace")
                self._stream.write(escaped.decode(self._stream.encoding))
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def finish(self) -> None:
        """Flush the stream. If that fails, make its file descriptor discard what is left.

        Otherwise Python would try again at its exit, print an error and change the exit status.
        """
        try:
            self._stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as null:
                os.dup2(null.fileno(), self._stream.fileno())


@contextlib.contextmanager
def lenient_output() -> Iterator[None]:
    """Make stdout and stderr drop what they cannot write. Nested blocks change nothing."""
    if isinstance(sys.stdout, Output):
        yield
        return
    occupy_standard_descriptors()
    with contextlib.ExitStack() as stack:
        # Python has no stream if the descriptor was closed at its start.
        streams = [
            stream or stack.enter_context(open(os.devnull, "w"))
            for stream in (sys.stdout, sys.stderr)
        ]
        out, err = map(Output, streams)
        stack.enter_context(contextlib.redirect_stdout(cast(Any, out)))
        stack.enter_context(contextlib.redirect_stderr(cast(Any, err)))
        stack.callback(err.finish)
        stack.callback(out.finish)
        yield


def occupy_standard_descriptors() -> None:
    """Open those of the descriptors 0, 1 and 2 that are closed.

    Otherwise the next file to be opened would get the number, and with it all that XLA's C++ code
    writes to stderr.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free number is assigned, which is this one.
            os.open(os.devnull, os.O_RDWR)
