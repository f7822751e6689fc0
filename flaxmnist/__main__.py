"""The program ``flaxmnist``, also ``python -m flaxmnist``."""

import sys

from flaxmnist import startup


def main() -> int:
    """Runs the command line and returns its exit code."""
    startup.prepare()
    # Not before, because it imports JAX.
    from flaxmnist.main import main

    return main()


if __name__ == "__main__":
    sys.exit(main())
