"""What predictions tell beyond their accuracy: intervals and calibration."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from scipy.stats import binomtest


def interval(correct: int, count: int) -> tuple[float, float]:
    """Returns the 95 % confidence interval of a share (Wilson, 1927)."""
    found = binomtest(int(correct), int(count)).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def mean_interval(values: Float[np.ndarray, " count"]) -> tuple[float, float]:
    """Returns the 95 % confidence interval of a mean, by the normal approximation."""
    half = 1.96 * float(np.std(values)) / np.sqrt(len(values))
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def losses(
    logits: Float[np.ndarray, "count classes"], labels: Int[np.ndarray, " count"]
) -> Float[np.ndarray, " count"]:
    """Returns the cross-entropy of each example, in nats."""
    return -log_softmax(logits, axis=-1)[np.arange(len(labels)), labels]


def fit_temperature(
    logits: Float[np.ndarray, "count classes"], labels: Int[np.ndarray, " count"]
) -> float:
    """Returns what to divide logits by for the least cross-entropy.

    Guo et al., 2017, "On Calibration of Modern Neural Networks". Fitted on validation,
    it makes probabilities as honest as one number can; the classes stay the same.
    """
    found = minimize_scalar(
        lambda log_t: losses(logits / np.exp(log_t), labels).mean(),
        bounds=(-3, 3),
        method="bounded",
    )
    return float(np.exp(found.x))


def reliability(
    logits: Float[np.ndarray, "count classes"],
    labels: Int[np.ndarray, " count"],
    bins: int = 15,
) -> dict[str, Any]:
    """Returns how often predictions are right, by how sure they are.

    Returns:
      ``edges`` `[bins + 1]`; ``count``, mean ``confidence`` and ``accuracy`` `[bins]`,
      0 where there is none; and ``ece``, the mean distance between the two, over
      examples (Naeini et al., 2015, "Obtaining Well Calibrated Probabilities Using
      Bayesian Binning").
    """
    probabilities = softmax(logits, axis=-1)
    confidence = probabilities.max(axis=-1)
    right: Bool[np.ndarray, " count"] = probabilities.argmax(axis=-1) == labels
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    most = np.maximum(count, 1)
    means = np.bincount(place, confidence, bins) / most
    accuracy = np.bincount(place, right, bins) / most
    ece = float((count * abs(means - accuracy)).sum() / len(labels))
    return {
        "edges": edges,
        "count": count,
        "confidence": means,
        "accuracy": accuracy,
        "ece": ece,
    }
