"""`python -m flaxmnist.demo`, the same as `flaxmnist demo`."""

import sys

from flaxmnist.__main__ import main

if __name__ == "__main__":
    sys.exit(main(command="demo"))
