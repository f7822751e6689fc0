"""`python -m flaxmnist.export`, the same as `flaxmnist export`."""

import sys

from flaxmnist.__main__ import main

if __name__ == "__main__":
    sys.exit(main(command="export"))
