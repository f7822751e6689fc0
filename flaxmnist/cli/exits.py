"""Exit codes of the commands, and the messages of their errors."""

import contextlib
import faulthandler
import io
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import jax

from flaxmnist.errors import StoppedError, printable
from flaxmnist.runtime import logs, processes, startup
from flaxmnist.runtime.failures import explain


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides the warnings and log messages of libraries while the block runs."""
    error, nothing = logging.ERROR, logging.CRITICAL
    # Orbax logs each error that it raises, with the traceback.
    levels = {"absl": nothing, "orbax": nothing, "onnx_ir": error}
    levels |= {"flaxmnist": error, "jax": error}
    # Here, JAX tells of a GPU or TPU that it cannot use.
    levels["jax._src.xla_bridge"] = logging.WARNING
    with logs.at_levels(**levels), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def print_error(text: str) -> None:
    """Prints a message on the error stream."""
    text = printable(text, keep="\n")
    with contextlib.suppress(OSError):  # The disk of the error stream may be full.
        print(f"flaxmnist: {text}", file=sys.stderr, flush=True)


def exit_code(
    run: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None
) -> int:
    """Runs a command and returns its exit code.

    The exit code is 2 after a user's mistake, 130 after Ctrl-C, and 143 after SIGTERM.
    If `argv` is None, Ctrl-C ends the process at once, except while a run handles it.

    Args:
      run: function that takes the flags and returns an exit code, or None for 0.
      argv: the flags; those of this process if None.
    """
    if argv is None:
        startup.prepare()
        # Print the Python stack after a crash in compiled code.
        faulthandler.enable()
        startup.start_garbage_collection()
        # Escape characters that the terminal cannot encode instead of raising.
        cast(io.TextIOWrapper, sys.stdout).reconfigure(errors="backslashreplace")
        argv = sys.argv[1:]
    verbose = not {"-v", "--verbose"}.isdisjoint(argv)
    failure = ""
    with contextlib.nullcontext() if verbose else _quiet():
        try:
            return run(argv) or 0
        except StoppedError as stopped:
            print_error(str(stopped))
            code, failure = 128 + stopped.number, str(stopped) if stopped.alone else ""
        except KeyboardInterrupt:
            failure = "interrupted"
            print_error(failure)
            code = 128 + signal.SIGINT
        except BrokenPipeError:  # The reader has ended, such as `head`.
            code, failure = 1, "the reader of its output has ended"
        except Exception as error:
            if (text := explain(error)) is None:
                if not jax.distributed.is_initialized():
                    raise
                lost = processes.is_peer_failure(error)
                traceback.print_exception(error, limit=0 if lost else None)
                failure = f"{type(error).__name__}: {error}".partition("\n")[0]
                return processes.exit_process(1, None if lost else failure)
            if verbose:
                traceback.print_exception(error)
            print_error(text)
            code, failure = 2, text
        try:
            sys.stdout.flush()
        except OSError:  # Python would try again at exit, and print another error.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return processes.exit_process(code, failure) if failure else code
