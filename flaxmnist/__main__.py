"""The program ``flaxmnist``, also ``python -m flaxmnist``."""

import importlib
import sys

from flaxmnist.runtime import startup

COMMANDS = ("train", "predict", "report", "export", "demo", "doctor")


def main(command: str | None = None) -> int:
    """Runs a command, by default the one that the first argument names.

    Without a name, the command is ``train``. Returns the exit code.
    """
    startup.prepare()
    if command is None:
        named = len(sys.argv) > 1 and sys.argv[1] in COMMANDS
        command = sys.argv.pop(1) if named else "train"
    return importlib.import_module(f"flaxmnist.cli.{command}").main()


if __name__ == "__main__":
    sys.exit(main())
