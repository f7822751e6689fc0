"""Preparation of a program, before it imports the rest of the library."""

import contextlib
import functools
import gc
import logging
import os
import re
import signal
import subprocess
import sys
import threading


@functools.cache
def prepare() -> None:
    """Lets Ctrl-C end the process at once, opens closed standard streams, loads JAX.

    Only programs call it: importing the library changes no signal handler and no
    stream. A second call does nothing. Garbage collection is off until
    :func:`start_garbage_collection` is called.
    """
    # Imports leave little garbage. Collecting it would take 0.1 s of a start.
    gc.disable()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Python would raise KeyboardInterrupt. That prints a traceback, is lost in a
        # callback, or waits for a file that is being written.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Figures are only saved, and matplotlib is not imported with an unknown backend.
    os.environ["MPLBACKEND"] = "agg"
    verbose = not {"-v", "--verbose"}.isdisjoint(sys.argv)
    if not verbose:  # It warns if the home directory cannot be written.
        logging.getLogger("matplotlib").setLevel(logging.ERROR)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # This takes the free file descriptor. Otherwise the next file that is
            # opened would get what libraries print.
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    try:
        _check_threads()
        _check_xla_flags()
        import jax  # noqa: F401
    # Causes: environment variables, too little memory, a damaged installation.
    except Exception as error:
        if verbose:
            raise
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        with contextlib.suppress(OSError):
            print(
                f"flaxmnist: jax cannot start ({text}); check XLA_FLAGS, environment "
                "variables whose names begin with JAX_, and limits of memory and "
                "threads, as `ulimit -a` shows them; -v shows more",
                file=sys.stderr,
                flush=True,
            )
        sys.exit(2)


def start_garbage_collection() -> None:
    """Starts garbage collection, without the objects that exist already.

    Imported modules are never freed, and scanning them again and again would slow down
    the tracing of programs.
    """
    gc.freeze()
    gc.enable()


def _check_threads() -> None:
    """Raises RuntimeError where threads cannot be started: XLA would abort."""
    end = threading.Event()
    started: list[threading.Thread] = []
    try:
        # XLA starts about as many.
        for _ in range(24 + 2 * (os.cpu_count() or 1)):
            thread = threading.Thread(target=end.wait, daemon=True)
            thread.start()
            started.append(thread)
    finally:
        end.set()
        for thread in started:
            thread.join()  # Otherwise they would count against the limit with XLA's.


def _check_xla_flags() -> None:
    """Raises ValueError if XLA cannot parse XLA_FLAGS: it would end the process."""
    if not os.environ.get("XLA_FLAGS"):
        return
    # Parses them as XLA does before its first program, and starts no device.
    program = (
        "from jaxlib import xla_client\n"
        "xla_client.CompileOptions().executable_build_options.debug_options"
    )
    child = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        errors="replace",
    )
    # A log line of XLA. After any other failure of the child, this process goes on.
    logged = re.search(r"^[EF]\d{4} [^\]]*\] (.*)", child.stderr, re.MULTILINE)
    if child.returncode and logged:
        raise ValueError(f"XLA_FLAGS: {logged[1][:200]}")
