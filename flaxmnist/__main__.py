"""The program ``flaxmnist``, also ``python -m flaxmnist``."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from flaxmnist import __version__
from flaxmnist.errors import did_you_mean
from flaxmnist.runtime import startup

COMMANDS = {
    "train": "train a model, or resume a run",
    "eval": "evaluate a run on its three splits",
    "predict": "predict pictures, or a split of the data",
    "report": "write the report of a run, or compare runs",
    "labels": "find training labels that are probably wrong",
    "export": "write a model for other programs",
    "demo": "draw on a page in the browser",
    "doctor": "check this machine, its devices and the data",
}
_LIST = "\n".join(f"  {name:<9}{text}" for name, text in COMMANDS.items())
_HELP = f"""\
usage: flaxmnist COMMAND [flags]

{_LIST}

flaxmnist COMMAND --help lists the flags of a command. Without COMMAND, the flags are
those of train. flaxmnist --version prints the version.
"""


def _choose(argv: list[str]) -> tuple[str, list[str]]:
    """Returns the name of the command, and its arguments."""
    if argv and not argv[0].startswith("-"):
        return argv[0], argv[1:]
    # The older way to name a command, as in `--mode eval`.
    parser = argparse.ArgumentParser(
        add_help=False, allow_abbrev=False, exit_on_error=False
    )
    parser.add_argument("--mode", default="train")
    try:
        args, rest = parser.parse_known_args(argv)
    except argparse.ArgumentError:  # Without a value.
        return "train", argv
    if args.mode == "predict" and not any(flag.startswith("--split") for flag in rest):
        rest.append("--split=test")
    return args.mode, rest


def main(argv: Sequence[str] | None = None, command: str | None = None) -> int:
    """Runs a command and returns its exit code.

    Args:
      argv: the arguments; those of the process if None.
      command: its name; if None, the first argument is the name, or it is ``train``.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    if command is None:
        if not given or given[0] in ("-h", "--help", "help"):
            print(_HELP, end="")
            return 0
        if given[0] == "--version":
            print(f"flaxmnist {__version__}")
            return 0
        command, given = _choose(given)
    if command not in COMMANDS:
        hint = did_you_mean(command, COMMANDS)
        print(f"flaxmnist: unknown command {command!r}{hint}", file=sys.stderr)
        return 2
    if argv is None:
        startup.prepare()
        sys.argv[1:] = given
    module = importlib.import_module(f"flaxmnist.cli.{command}")
    return module.main(None if argv is None else given)


if __name__ == "__main__":
    sys.exit(main())
