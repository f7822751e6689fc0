"""Energy of images: high for those that are unlike the training images.

The energy of an image is -log Σ exp(logits) (Liu et al., 2020, "Energy-based
Out-of-distribution Detection", NeurIPS). It needs logits only, so every model has it.
"""

import math

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp

# Share of the validation images that have a higher energy than the limit.
SHARE = 0.015


def energy(logits: Float[np.ndarray, "count classes"]) -> Float[np.ndarray, " count"]:
    """Returns the energy of each image, in nats."""
    nats: np.ndarray = -logsumexp(np.asarray(logits, np.float64), axis=-1)
    return nats


def energy_limit(logits: Float[np.ndarray, "count classes"]) -> float | None:
    """Returns the energy that a share of `SHARE` of the validation images exceed.

    Args:
      logits: of all validation images.

    Returns:
      the limit; None if a logit is not finite.
    """
    limit = float(np.quantile(energy(logits), 1 - SHARE))
    return limit if math.isfinite(limit) else None
