"""Ctrl-C and termination in nested blocks, as of a member in a population."""

import signal

import pytest

from flaxmnist.errors import StoppedError
from flaxmnist.runtime.interrupts import record_interrupts, stop_at_interrupt

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def receive(*numbers):
    """Receives signals in an inner block, which records the first."""
    with stop_at_interrupt("all stopped"), record_interrupts() as interrupt:
        for number in numbers:
            signal.raise_signal(number)
        assert interrupt.number == numbers[0]


def handlers():
    return [signal.getsignal(number) for number in SIGNALS]


def test_a_signal_in_an_inner_block_stops_after_it():
    before = handlers()
    with pytest.raises(StoppedError, match="all stopped") as raised:
        receive(signal.SIGTERM)
    assert raised.value.number == signal.SIGTERM
    assert handlers() == before


def test_a_second_signal_in_an_inner_block_ends_the_process():
    before = handlers()
    with pytest.raises(KeyboardInterrupt) as raised:
        receive(signal.SIGTERM, signal.SIGINT)
    assert raised.type is KeyboardInterrupt  # Of Python's own handler.
    assert handlers() == before
