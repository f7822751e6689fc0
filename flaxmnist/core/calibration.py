"""Calibrates predictions on validation: probabilities, and a limit of the energy.

The logits are divided by a temperature (Guo et al., 2017, "On Calibration of Modern
Neural Networks", ICML). The energy of an image is -log Σ exp(logits) (Liu et al., 2020,
"Energy-based Out-of-distribution Detection", NeurIPS): high for images that are unlike
the training images. Both need logits only, so every model has them.
"""

import dataclasses

import numpy as np
import scipy  # Its parts take a second to import, which happens at their first use.
from jaxtyping import Float, Int

# A prediction whose probability is lower gets a warning.
SURE = 0.7
# Share of the validation images that have a higher energy than the limit.
_SHARE = 0.018
# The logarithm of a temperature is between these.
_BOUNDS = (-3, 3)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The calibration of the predictions of a run.

    Attributes:
      temperature: divisor of the logits.
      energy_limit: images of a higher energy are unlike the validation images; None if
        it is not known.
    """

    temperature: float = 1.0
    energy_limit: float | None = None

    def probabilities(
        self, logits: Float[np.ndarray, "*count classes"]
    ) -> Float[np.ndarray, "*count classes"]:
        """Returns the probabilities of the classes, float32."""
        scaled = np.asarray(logits, np.float64) / self.temperature
        probabilities: np.ndarray = scipy.special.softmax(scaled, axis=-1).astype(
            np.float32
        )
        return probabilities


UNCALIBRATED = Calibration()


def energy(
    logits: Float[np.ndarray, "*count classes"],
) -> Float[np.ndarray, "*count"]:
    """Returns the energy of each image, in nats."""
    nats: np.ndarray = -scipy.special.logsumexp(np.asarray(logits, np.float64), axis=-1)
    return nats


def energy_limit(logits: Float[np.ndarray, "count classes"]) -> float | None:
    """Returns the energy that 1.8 % of the validation images exceed.

    Args:
      logits: of all validation images.

    Returns:
      the limit; None if a logit is not finite.
    """
    if not np.isfinite(logits).all():
        return None
    return float(np.quantile(energy(logits), 1 - _SHARE))


def fit_temperature(
    logits: Float[np.ndarray, "count classes"], labels: Int[np.ndarray, " count"]
) -> float:
    """Returns the divisor of the logits that minimizes the cross-entropy.

    The targets are smoothed by 1 / (count + 2), as Platt (1999, "Probabilistic Outputs
    for Support Vector Machines") does. Otherwise, predictions without a mistake would
    get the lowest temperature that is tried.

    Args:
      logits: of all validation images.
      labels: of these images.

    Returns:
      the temperature; 1 if a logit is not finite.
    """
    if not np.isfinite(logits).all():
        return 1.0
    logits, count = np.asarray(logits, np.float64), len(labels)
    targets = np.full(logits.shape, 1 / (count + 2) / max(logits.shape[1] - 1, 1))
    targets[np.arange(count), labels] = 1 - 1 / (count + 2)

    def loss(log_temperature: float) -> float:
        scaled = scipy.special.log_softmax(logits / np.exp(log_temperature), axis=-1)
        return float(-(targets * scaled).sum())

    found = scipy.optimize.minimize_scalar(loss, bounds=_BOUNDS, method="bounded")
    return float(np.exp(found.x))
