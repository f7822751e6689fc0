"""What a program does first, before it imports JAX."""

import os
import signal
import sys


def prepare() -> None:
    """Lets Ctrl-C end the process at once, and replaces closed standard streams.

    Only programs call it: importing the library changes no signal handler and no
    stream.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Python would raise KeyboardInterrupt. That prints a traceback, is lost in a
        # callback, or waits for a file that is being written.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # This takes the free file descriptor. Otherwise the next file that is
            # opened would get what libraries print.
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
