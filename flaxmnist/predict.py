"""`python -m flaxmnist.predict`, the same as `flaxmnist predict`."""

import sys

from flaxmnist.__main__ import main

if __name__ == "__main__":
    sys.exit(main(command="predict"))
