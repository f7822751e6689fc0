"""Checks that an export predicts the same as its checkpoint."""

from collections.abc import Callable

import numpy as np

from flaxmnist.errors import ParityError

# Takes uint8 [count, height, width, channels], and returns [count, classes].
Logits = Callable[[np.ndarray], np.ndarray]

# A logit may differ by the first value plus the second times the largest logit: float32
# has seven digits, and an export adds in another order. Most images that are compared.
TOLERANCE, RELATIVE_TOLERANCE, CHECKED = 1e-4, 1e-5, 1_000


def check_parity(found: np.ndarray, wanted: np.ndarray) -> float:
    """Returns the largest difference of a logit; raises ParityError if it is large."""
    difference = float(abs(found - wanted).max())
    limit = TOLERANCE + RELATIVE_TOLERANCE * float(abs(wanted).max())
    if not difference <= limit:
        raise ParityError(
            f"the largest difference of a logit to the checkpoint is {difference:.1e}; "
            f"expected at most {limit:.1e}. The export was not kept"
        )
    return difference
