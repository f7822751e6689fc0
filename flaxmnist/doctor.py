"""`python -m flaxmnist.doctor`, the same as `flaxmnist doctor`."""

import sys

from flaxmnist.__main__ import main

if __name__ == "__main__":
    sys.exit(main(command="doctor"))
