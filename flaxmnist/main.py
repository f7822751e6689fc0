"""`python -m flaxmnist.main`, the same as `flaxmnist train`."""

import sys

from flaxmnist.__main__ import main

if __name__ == "__main__":
    # `--mode` names another command.
    is_help = {"-h", "--help"}.intersection(sys.argv)
    sys.exit(main(command="train" if is_help or len(sys.argv) == 1 else None))
