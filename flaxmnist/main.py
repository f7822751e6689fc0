"""`python -m flaxmnist.main`, the same as `flaxmnist train`."""

import sys

from flaxmnist.__main__ import main

if __name__ == "__main__":
    sys.exit(main("train"))
