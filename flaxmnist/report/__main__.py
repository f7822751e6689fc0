"""`python -m flaxmnist.report`, the same as `flaxmnist report`."""

import sys

from flaxmnist.__main__ import main

if __name__ == "__main__":
    sys.exit(main(command="report"))
