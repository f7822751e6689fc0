"""Confidence intervals and calibration of predictions."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy  # See `core.calibration`.
from jaxtyping import Bool, Float, Int


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Accuracy by probability of the prediction, in bins.

    Attributes:
      edges: of the bins, `[bins + 1]`.
      count: number of examples per bin, `[bins]`.
      confidence: mean probability per bin, `[bins]`; 0 where a bin is empty.
      accuracy: share of correct predictions per bin, `[bins]`; 0 where a bin is empty.
      ece: mean distance between the two, over examples (Naeini et al., 2015,
        "Obtaining Well Calibrated Probabilities Using Bayesian Binning").
    """

    edges: np.ndarray
    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    ece: float


def interval(correct: int, count: int) -> tuple[float, float]:
    """Returns the 95 % confidence interval of a share (Wilson, 1927)."""
    found = scipy.stats.binomtest(int(correct), int(count)).proportion_ci(
        method="wilson"
    )
    return float(found.low), float(found.high)


def mean_interval(values: Float[np.ndarray, " count"]) -> tuple[float, float]:
    """Returns the 95 % confidence interval of a mean, by the normal approximation."""
    half = 1.96 * float(np.std(values)) / np.sqrt(len(values))
    return float(np.mean(values)) - half, float(np.mean(values)) + half


@dataclasses.dataclass(frozen=True)
class Spread:
    """The values of several runs.

    Attributes:
      count: number of values.
      mean: of the values.
      sd: standard deviation of the values (divisor `count - 1`); None for one value.
      low: lower end of the 95 % confidence interval of the mean (Student, 1908, "The
        Probable Error of a Mean"); None for one value.
      high: upper end of that interval; None for one value.
    """

    count: int
    mean: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Returns the spread of one or more values."""
        count, mean = len(values), float(np.mean(values))
        if count < 2:
            return cls(count, mean)
        sd = float(np.std(values, ddof=1))
        half = float(scipy.stats.t.ppf(0.975, count - 1)) * sd / count**0.5
        return cls(count, mean, sd, mean - half, mean + half)


def losses(
    logits: Float[np.ndarray, "count classes"], labels: Int[np.ndarray, " count"]
) -> Float[np.ndarray, " count"]:
    """Returns the cross-entropy of each example, in nats."""
    return -scipy.special.log_softmax(logits, axis=-1)[np.arange(len(labels)), labels]


def reliability(
    logits: Float[np.ndarray, "count classes"],
    labels: Int[np.ndarray, " count"],
    bins: int = 15,
) -> Reliability:
    """Returns the accuracy of predictions by the probability of the first choice."""
    probabilities = scipy.special.softmax(logits, axis=-1)
    confidence = probabilities.max(axis=-1)
    right: Bool[np.ndarray, " count"] = probabilities.argmax(axis=-1) == labels
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    most = np.maximum(count, 1)
    means = np.bincount(place, confidence, bins) / most
    accuracy = np.bincount(place, right, bins) / most
    ece = float((count * abs(means - accuracy)).sum() / len(labels))
    return Reliability(edges, count, means, accuracy, ece)
