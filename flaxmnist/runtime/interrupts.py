"""Handling of Ctrl-C and of termination between two steps instead of within one.

Clouds and clusters announce a preemption by SIGTERM.
"""

import contextlib
import functools
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flaxmnist.errors import StoppedError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# The handlers before the outermost of nested blocks.
_outermost: dict[signal.Signals, Any] = {}


class Interrupt:
    """The `number` of the signal that was received, or 0."""

    number = 0


@contextlib.contextmanager
def _handled(handle: Callable[[int], None]) -> Iterator[None]:
    """Calls `handle` at the first SIGINT or SIGTERM; a second ends the process at once.

    Outside the main thread, where Python handles no signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: handler
        for number in _SIGNALS
        # A signal that a script or `nohup` ignores stays ignored.
        if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None)
    }

    is_outermost = not _outermost
    if is_outermost:
        _outermost.update(before)

    def restore(handlers: Mapping[signal.Signals, Any]) -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def receive(number: int, frame: object) -> None:
        # The next signal ends the process, also in an inner block.
        restore(_outermost)
        handle(number)

    for number in before:
        signal.signal(number, receive)
    try:
        yield
    finally:
        restore(before)
        if is_outermost:
            _outermost.clear()


@contextlib.contextmanager
def record_interrupts() -> Iterator[Interrupt]:
    """Records the first SIGINT or SIGTERM; a second ends the process at once.

    A recorded signal takes effect after the block, unless the block raises an error.
    """
    interrupt = Interrupt()
    with _handled(functools.partial(setattr, interrupt, "number")):
        yield interrupt
    if interrupt.number:
        signal.raise_signal(interrupt.number)


@contextlib.contextmanager
def stop_at_interrupt(message: str) -> Iterator[None]:
    """Raises StoppedError with `message` at the first SIGINT or SIGTERM."""

    def stop(number: int) -> None:
        raise StoppedError(number, message, alone=True)

    with _handled(stop):
        yield
