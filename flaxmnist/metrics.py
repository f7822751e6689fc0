"""Sums from which every figure of a report follows, exact under any batching."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from flaxmnist.inputs import NUM_CLASSES


@struct.dataclass
class Metrics:
    """Sums over examples; merging is addition, so batches may be cut anywhere.

    Attributes:
      loss_sum: float32 `[]`, sum of the examples' cross-entropies, in nats.
      confusion: int32 `[10, 10]`, examples by label (row) and prediction (column).
    """

    loss_sum: Any
    confusion: Any

    @classmethod
    def empty(cls) -> "Metrics":
        """Returns the metrics of no example."""
        return cls(
            loss_sum=jnp.zeros((), jnp.float32),
            confusion=jnp.zeros((NUM_CLASSES, NUM_CLASSES), jnp.int32),
        )

    @classmethod
    def of(
        cls,
        losses: Float[Array, " batch"],
        logits: Float[Array, "batch 10"],
        labels: Int[Array, " batch"],
        mask: Bool[Array, " batch"],
    ) -> "Metrics":
        """Returns the metrics of a batch; where `mask` is False is padding."""
        predictions = jnp.argmax(logits, axis=-1)
        confusion = cls.empty().confusion.at[labels, predictions].add(mask)
        return cls(jnp.where(mask, losses, 0).sum(), confusion)

    def merge(self, other: "Metrics") -> "Metrics":
        """Returns the metrics of both together."""
        return Metrics(self.loss_sum + other.loss_sum, self.confusion + other.confusion)

    @property
    def count(self) -> Any:
        """Number of examples."""
        return self.confusion.sum()

    def compute(self) -> dict[str, Any]:
        """Returns mean `loss`, `accuracy` and `count` as Python numbers."""
        confusion = np.asarray(self.confusion)
        count = int(confusion.sum())
        return {
            "loss": float(self.loss_sum) / max(count, 1),
            "accuracy": int(np.trace(confusion)) / max(count, 1),
            "count": count,
        }

    def per_class(self) -> dict[str, np.ndarray]:
        """Returns `precision`, `recall` and `f1`, float64 `[10]`; 0 where undefined."""
        confusion = np.asarray(self.confusion, np.float64)
        correct = np.diagonal(confusion)
        predicted, actual = confusion.sum(axis=0), confusion.sum(axis=1)
        return {
            "precision": correct / np.maximum(predicted, 1),
            "recall": correct / np.maximum(actual, 1),
            "f1": 2 * correct / np.maximum(predicted + actual, 1),
        }
