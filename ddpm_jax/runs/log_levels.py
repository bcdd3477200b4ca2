"""Levels of other packages' loggers, changed for the length of a block alone."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def log_level(level: int, *names: str) -> Iterator[None]:
    """Give these loggers a level while the block runs, and their own levels back afterwards."""
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, own in before.items():
            logging.getLogger(name).setLevel(own)
