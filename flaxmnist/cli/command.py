"""Code that all commands share: flags, and the start of JAX."""

import argparse
import functools
from collections.abc import Sequence
from typing import Any

from flaxmnist import config as configs
from flaxmnist.core.sharding import MAX_CPU_DEVICES
from flaxmnist.errors import UserError, did_you_mean
from flaxmnist.paths import path_of
from flaxmnist.rundir import folder as workdirs
from flaxmnist.rundir import population
from flaxmnist.runtime import devices, processes
from flaxmnist.runtime.console import output_errors
from flaxmnist.runtime.devices import PLATFORMS

# Flags that may differ between the processes of one run.
_PER_PROCESS_FLAGS = {
    "coordinator",
    "num_processes",
    "process_id",
    "config",
    "workdir",
    "verbose",
    "no_cache",
}


class Parser(argparse.ArgumentParser):
    """A parser that raises UserError, with the flags that all commands have.

    Args:
      name: name of the command.
      description: text that ``--help`` shows without reformatting it.
    """

    def __init__(self, name: str, description: str):
        super().__init__(
            prog=f"flaxmnist {name}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("--platform", choices=PLATFORMS, help="default: the best")
        self.add_argument(
            "--no_cache",
            action="store_true",
            help="do not read or write compiled programs and unpacked data files",
        )
        self.add_argument(
            "-v", "--verbose", action="store_true", help="show the logs of libraries"
        )

    def add_run(self, required: bool = True) -> None:
        """Adds the flags that name a run and one of its checkpoints."""
        self.add_argument(
            "--workdir",
            type=path_of,
            metavar="DIR",
            required=required,
            help="the run directory",
        )
        self.add_argument(
            "--step",
            type=int,
            metavar="N",
            help="a checkpoint; default: the best on validation",
        )
        self.add_trust()

    def add_trust(self) -> None:
        """Adds the flag that permits the code of a run directory."""
        self.add_argument(
            "--trust_code",
            action="store_true",
            help="run the code that the run directory names; read the code first",
        )

    def add_config(self) -> None:
        """Adds the flag of a configuration to compare with that of the run."""
        self.add_argument(
            "--config",
            metavar="FILE[:VARIANT]",
            help="stop if the run has another model, data or seed than this",
        )

    def add_recipe(self, default: str = "") -> None:
        """Adds --config for commands that train; required if there is no default."""
        names = ", ".join(configs.shipped())
        self.add_argument(
            "--config",
            metavar="FILE[:VARIANT]",
            required=not default,
            help="a configuration file, or the name of one that flaxmnist contains: "
            f"{names}{default and f'; default: {default}'}",
        )

    def add_devices(self) -> None:
        """Adds the flags that choose devices and processes."""
        group = self.add_argument_group("devices and processes")
        group.add_argument("--devices", metavar="IDS", help="device ids, such as 0,2")
        group.add_argument(
            "--num_cpu_devices", type=int, metavar="N", help="use N virtual CPU devices"
        )
        group.add_argument(
            "--deterministic",
            action="store_true",
            help="equal bits in every run on GPU, where that is slower",
        )
        group.add_argument(
            "--coordinator",
            metavar="HOST:PORT",
            help="address of process 0, if several processes train one model",
        )
        group.add_argument(
            "--num_processes", type=int, metavar="N", help="number of processes"
        )
        group.add_argument(
            "--process_id", type=int, metavar="I", help="index of this process, from 0"
        )

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
        hint = did_you_mean(flag, known)
        return UserError(f"unknown argument {flag!r} for {self.prog}{hint}")

    def parse_config_args(
        self, argv: Sequence[str]
    ) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
        """Returns the flags, and overrides such as ``[("optimizer.name", "adam")]``.

        Raises:
          UserError: a flag is unknown, or has no value.
        """
        overrides, others = [], []
        remaining = iter(argv)
        for flag in remaining:
            name, equals, value = flag.partition("=")
            key = name.removeprefix("--config.")
            if not name.startswith("--config.") or not key:
                others.append(flag)
                continue
            if not equals and (value := next(remaining, "")) == "":
                raise UserError(f"{flag} has no value: expected {flag}=VALUE")
            overrides.append((key, value))
        args = self.parse_args(others)
        if getattr(args, "devices", None) is not None:
            overrides.append(("mesh.devices", args.devices))
        return args, overrides

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Returns the flags.

        Raises:
          UserError: a flag is unknown, or its value is invalid.
        """
        found, rest = self.parse_known_intermixed_args(args, namespace)
        if rest:
            raise self.refuse(rest[0])
        return found


def load_config(
    args: argparse.Namespace, overrides: list[tuple[str, str]]
) -> configs.Config:
    """Returns the configuration of ``--config`` or ``--workdir`` with overrides.

    Raises:
      UserError: neither flag names a configuration, or it is invalid.
    """
    if args.trust_code and args.workdir is not None:
        workdirs.permit_all(args.workdir)
    if args.config is not None:
        config = configs.load(args.config)
    elif args.workdir is None:
        names = ", ".join(configs.shipped())
        raise UserError(f"--config is missing; expected a file, or one of {names}")
    elif (found := workdirs.saved_config(args.workdir)) is not None:
        config = found
    else:
        population.check_exists(args.workdir)
        start = "" if "step" in args else ", or --config to start a run"
        raise UserError(
            f"--workdir={args.workdir} contains no run; expected a run directory{start}"
        )
    return configs.override(config, overrides)


def start_jax(args: argparse.Namespace, several: bool = False) -> None:
    """Starts JAX on the devices and processes that the flags select.

    Args:
      args: the flags.
      several: whether the command may run in several processes; requires the flags of
        :meth:`Parser.add_devices`.

    Raises:
      UserError: a flag is invalid, or its devices or processes do not exist.
    """
    count = getattr(args, "num_cpu_devices", None)
    if count is not None and not 1 <= count <= MAX_CPU_DEVICES:
        raise UserError(f"--num_cpu_devices={count}: expected 1 to {MAX_CPU_DEVICES:,}")
    if count is not None and args.platform not in (None, "cpu"):
        raise UserError(f"--num_cpu_devices is not for --platform {args.platform}")
    join = None
    if several:
        shared = {
            f"--{name}": value
            for name, value in vars(args).items()
            if name not in _PER_PROCESS_FLAGS
        }
        # Their values may differ, but not whether they are given.
        shared["whether --config is given"] = getattr(args, "config", None) is not None
        join = functools.partial(
            processes.start,
            args.coordinator,
            args.num_processes,
            args.process_id,
            shared,
        )
    devices.start(
        args.platform,
        count,
        getattr(args, "deterministic", False),
        keep_programs=not args.no_cache,
        join=join,
    )
