"""What every command of flaxmnist shares: how it starts JAX, and how it ends."""

import argparse
import contextlib
import faulthandler
import gc
import io
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import jax

from flaxmnist.errors import StoppedError, UserError, did_you_mean, printable
from flaxmnist.paths import path_of
from flaxmnist.runtime import logs, processes, startup
from flaxmnist.runtime.console import output_errors
from flaxmnist.runtime.devices import PLATFORMS
from flaxmnist.runtime.failures import explain


class Parser(argparse.ArgumentParser):
    """A parser whose errors are a :class:`UserError`, with the flags all commands have.

    Args:
      prog: how it is called.
      description: shown by ``--help``, as it is.
    """

    def __init__(self, prog: str, description: str):
        super().__init__(
            prog=prog,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("--platform", choices=PLATFORMS, help="default: the best")
        self.add_argument(
            "--no_cache",
            action="store_true",
            help="compile anew, and keep nothing of it for the next run",
        )
        self.add_argument(
            "-v", "--verbose", action="store_true", help="show what the libraries log"
        )

    def add_run(self) -> None:
        """Adds the flags that name a run, and a checkpoint of it."""
        self.add_argument("--workdir", type=path_of, metavar="DIR", required=True)
        self.add_argument("--step", type=int, metavar="N", help="default: the best")

    def print_help(self, file: Any = None) -> None:
        """Prints the help at once."""
        with output_errors():
            print(self.format_help(), end="", file=file, flush=True)

    def error(self, message: str):
        """Raises UserError."""
        raise UserError(f"{message}; see --help")

    def refuse(self, flag: str) -> UserError:
        """Returns the error for an unknown flag."""
        known = [name for name in self._option_string_actions if name[:2] == "--"]
        return UserError(f"unknown argument {flag!r}{did_you_mean(flag, known)}")

    def parse_config_args(
        self, argv: Sequence[str]
    ) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
        """Returns the flags, and overrides such as ``[("optimizer.name", "adam")]``.

        Raises:
          UserError: a flag is unknown, or has no value.
        """
        args, rest = self.parse_known_args(argv)
        overrides = []
        remaining = iter(rest)
        for flag in remaining:
            name, equals, value = flag.partition("=")
            key = name.removeprefix("--config.")
            if not name.startswith("--config.") or not key:
                raise self.refuse(flag)
            if not equals and (value := next(remaining, "")) == "":
                raise UserError(f"{flag} has no value: expected {flag}=VALUE")
            overrides.append((key, value))
        return args, overrides

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Returns the flags.

        Raises:
          UserError: there is no such flag.
        """
        found, rest = self.parse_known_args(args, namespace)
        if rest:
            raise self.refuse(rest[0])
        return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides the warnings and log messages of libraries while the block runs."""
    error, nothing = logging.ERROR, logging.CRITICAL
    # Orbax logs each error that it raises, with the traceback.
    levels = logs.at_levels(
        absl=nothing, orbax=nothing, flaxmnist=error, jax=error, onnx_ir=error
    )
    with levels, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def say(text: str) -> None:
    """Prints an error for a person, on the error stream."""
    text = printable(text, keep="\n")
    with contextlib.suppress(OSError):  # The error stream may be on a full disk.
        print(f"flaxmnist: {text}", file=sys.stderr, flush=True)


def exit_code(
    run: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None
) -> int:
    """Runs a command and returns its exit code.

    If `argv` is None, Ctrl-C ends the process at once, except while a run handles it.
    The code is 2 after a user's mistake, and 130 after Ctrl-C, 143 after a termination.

    Args:
      run: takes the flags; returns an exit code, or None for 0.
      argv: the flags; those of the process if None.
    """
    if argv is None:
        startup.prepare()
        # A crash in compiled code prints where Python was.
        faulthandler.enable()
        # What was imported stays: the tracing of programs need not look through it,
        # again and again, for what might be freed.
        gc.freeze()
        # Escape characters that the terminal cannot encode instead of raising.
        cast(io.TextIOWrapper, sys.stdout).reconfigure(errors="backslashreplace")
        argv = sys.argv[1:]
    verbose = not {"-v", "--verbose"}.isdisjoint(argv)
    failure = ""
    with contextlib.nullcontext() if verbose else _quiet():
        try:
            return run(argv) or 0
        except StoppedError as stopped:
            say(str(stopped))
            code, failure = 128 + stopped.number, str(stopped) if stopped.alone else ""
        except KeyboardInterrupt:
            failure = "interrupted"
            say(failure)
            code = 128 + signal.SIGINT
        except BrokenPipeError:  # The reader has gone, as `head` does.
            code, failure = 1, "its output is not read any more"
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
            say(text)
            code, failure = 2, text
        try:
            sys.stdout.flush()
        except OSError:  # Python would try again at exit, and print another error.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return processes.exit_process(code, failure) if failure else code
