"""The levels of libraries' loggers."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def at_levels(**levels: int) -> Iterator[None]:
    """Raises the levels of loggers by their names while the block runs."""
    before = {name: logging.getLogger(name).level for name in levels}
    try:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(max(level, before[name]))
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
