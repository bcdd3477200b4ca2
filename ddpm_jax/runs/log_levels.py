"""Change the levels of other packages' loggers for the length of a block."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def log_level(level: int, *names: str) -> Iterator[None]:
    """Set the level of these loggers while the block runs, and restore their levels afterwards."""
    previous_levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, previous_level in previous_levels.items():
            logging.getLogger(name).setLevel(previous_level)
