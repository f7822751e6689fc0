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

from flaxmnist import distributed, logs, machine, startup
from flaxmnist.checks import UserError, did_you_mean, path_of, printable
from flaxmnist.console import output_errors
from flaxmnist.data.download import cache_dir
from flaxmnist.failures import explain
from flaxmnist.signals import StoppedError

# What JAX calls each, in the order in which they are tried.
PLATFORMS = {"cpu": ("cpu",), "gpu": ("cuda,cpu", "rocm,cpu"), "tpu": ("tpu,cpu",)}
# JAX's warning of a compiled program that it cannot read.
_DAMAGED_PROGRAM = "Error reading persistent compilation cache entry"
# Flags that may differ between the processes of one run.
_OWN_FLAGS = {
    "coordinator",
    "num_processes",
    "process_id",
    "config",
    "workdir",
    "verbose",
    "no_cache",
}


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


def _keep_programs() -> None:
    """Has JAX keep what it compiles, for the next run; damaged files are deleted."""
    # Programs are of one kind of processor, and a home may be shared by several.
    try:
        folder = cache_dir() / "programs" / machine.cpu_kind()[1]
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, UserError):  # A cache that cannot be kept is no reason not to run.
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    show = warnings.showwarning

    def delete_or_show(message: Warning | str, *details: Any, **options: Any) -> None:
        if not str(message).startswith(_DAMAGED_PROGRAM):
            return show(message, *details, **options)
        # JAX compiles anew, but never replaces a file, and does not say which it is.
        for path in folder.glob("*-cache"):
            with contextlib.suppress(OSError):
                path.unlink()

    warnings.showwarning = delete_or_show
    warnings.filterwarnings("always", _DAMAGED_PROGRAM)


def start_jax(
    args: argparse.Namespace,
    num_cpu_devices: int | None = None,
    deterministic: bool = False,
    processes: tuple[str | None, int | None, int | None] | None = None,
) -> None:
    """Chooses devices; JAX reads all of it when it first looks for them.

    Args:
      args: of a :class:`Parser`.
      num_cpu_devices: how many devices the CPU stands for.
      deterministic: the same bits again on GPU, where that is slower.
      processes: the arguments of :func:`flaxmnist.distributed.start`; None where a
        command is for one process.

    Raises:
      UserError: there is no such platform, or there are no such processes.
    """
    # Others may be on the same GPU; a user who sets the variable decides.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # So does one who keeps programs elsewhere.
    if not args.no_cache and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        _keep_programs()
    if deterministic:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
    if num_cpu_devices is not None:
        jax.config.update("jax_num_cpu_devices", num_cpu_devices)
    if processes is not None:
        shared = vars(args).keys() - _OWN_FLAGS
        distributed.start(*processes, {f"--{k}": getattr(args, k) for k in shared})
    wanted = "cpu" if num_cpu_devices is not None else args.platform
    if wanted is not None:
        _choose_platform(wanted)
    else:
        _check_devices()
    if processes is not None:
        distributed.check_devices()


def _check_devices() -> None:
    """Raises UserError if JAX does not find the devices that it is told to use."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or ["not built into this jaxlib"])[0]
        wanted = os.environ.get("JAX_PLATFORMS", "")
        raise UserError(
            f"JAX_PLATFORMS={wanted!r}: jax finds no devices ({reason}); unset it, or "
            "install the jax build for them"
        ) from error


def _choose_platform(wanted: str) -> None:
    """Has JAX use the devices of a platform alone; raises UserError if it has none."""
    reason = ""
    # "gpu" would fail in JAX where only one of the two kinds is installed.
    for name in PLATFORMS[wanted]:
        jax.config.update("jax_platforms", name)
        try:
            if jax.devices()[0].platform == wanted:
                return
        except RuntimeError as error:
            reason = f" ({str(error).splitlines()[0]})"
        except AssertionError:  # JAX's, where it was built without that platform.
            pass
        jax.config.update("jax_platforms", None)
    there = ", ".join(sorted({device.platform for device in jax.devices()}))
    raise UserError(
        f"--platform {wanted}: there is none here, only {there}; for GPU and TPU, "
        f"install the jax build for them{reason}"
    )


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
                lost = distributed.is_peer_failure(error)
                traceback.print_exception(error, limit=0 if lost else None)
                failure = f"{type(error).__name__}: {error}".partition("\n")[0]
                return distributed.exit_process(1, None if lost else failure)
            if verbose:
                traceback.print_exception(error)
            say(text)
            code, failure = 2, text
        try:
            sys.stdout.flush()
        except OSError:  # Python would try again at exit, and print another error.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return distributed.exit_process(code, failure) if failure else code
