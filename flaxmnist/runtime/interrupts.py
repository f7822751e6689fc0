"""Ctrl-C and termination, handled between two steps instead of within one.

Clouds and clusters announce a preemption to a process by SIGTERM, too.
"""

import contextlib
import functools
import signal
import threading
from collections.abc import Callable, Iterator

from flaxmnist.errors import StoppedError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Listener:
    """Holds the `number` of the signal that was heard, or 0."""

    number = 0


@contextlib.contextmanager
def _handled(handle: Callable[[int], None]) -> Iterator[None]:
    """Has the first SIGINT or SIGTERM call `handle`; a second ends the process at once.

    Outside the main thread, where Python handles no signals, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: handler
        for number in _SIGNALS
        # What a script or `nohup` has us ignore stays ignored.
        if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None)
    }

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def hear(number: int, frame: object) -> None:
        restore()
        handle(number)

    for number in before:
        signal.signal(number, hear)
    try:
        yield
    finally:
        restore()


@contextlib.contextmanager
def listening() -> Iterator[Listener]:
    """Records the first SIGINT or SIGTERM; a second ends the process at once.

    A recorded signal takes effect after the block, unless the block raises an error.
    """
    listener = Listener()
    with _handled(functools.partial(setattr, listener, "number")):
        yield listener
    if listener.number:
        signal.raise_signal(listener.number)


@contextlib.contextmanager
def stopping(message: str) -> Iterator[None]:
    """Has the first SIGINT or SIGTERM raise StoppedError with `message` at once."""

    def stop(number: int) -> None:
        raise StoppedError(number, message, alone=True)

    with _handled(stop):
        yield
