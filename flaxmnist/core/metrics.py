"""Metrics as sums over examples, which do not depend on the batch size."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from flaxmnist.core import mnist
from flaxmnist.errors import UserError


@struct.dataclass
class Metrics:
    """Sums over examples. Metrics of several batches merge by addition.

    Attributes:
      loss_sum: float32 `[]`, sum of the cross-entropies in nats.
      confusion: int32 `[classes, classes]`, examples by label (row) and prediction
        (column).
      invalid: int32 `[]`, number of examples excluded because their label is neither a
        class nor a distribution, or their weight is negative or not finite.
    """

    loss_sum: Float[Array, ""] | float
    confusion: Int[Array | np.ndarray, "classes classes"]
    invalid: Int[Array, ""] | int = 0

    def __repr__(self) -> str:
        try:
            count, invalid = int(self.count), int(self.invalid)
            correct, loss_sum = int(self.confusion.trace()), float(self.loss_sum)
        except (AttributeError, TypeError, RuntimeError):  # Abstract, or donated.
            return "Metrics(without values)"
        rest = f", {invalid:,} invalid labels" if invalid else ""
        return (
            f"Metrics({count:,} examples, loss {loss_sum / max(count, 1):.4f}, "
            f"accuracy {correct / max(count, 1):.2%}{rest})"
        )

    @classmethod
    def empty(cls, num_classes: int = mnist.NUM_CLASSES) -> "Metrics":
        """Returns the metrics of zero examples."""
        return cls(
            loss_sum=jnp.zeros((), jnp.float32),
            confusion=jnp.zeros((num_classes, num_classes), jnp.int32),
            invalid=jnp.zeros((), jnp.int32),
        )

    @classmethod
    def of(
        cls,
        losses: Float[Array, " batch"],
        logits: Float[Array, "batch classes"],
        labels: Int[Array, " batch"],
        mask: Bool[Array, " batch"],
        valid: Bool[Array, " batch"] | bool = True,
    ) -> "Metrics":
        """Returns the metrics of a batch.

        Args:
          losses: cross-entropy of each example, in nats.
          logits: outputs of the model.
          labels: classes.
          mask: False where an example is padding.
          valid: False where a label is invalid; such an example counts in `invalid`
            only.
        """
        predictions = jnp.argmax(logits, axis=-1)
        invalid = (mask & jnp.logical_not(valid)).sum(dtype=jnp.int32)
        mask = mask & valid
        empty = jnp.zeros((logits.shape[1],) * 2, jnp.int32)
        confusion = empty.at[labels, predictions].add(mask)
        return cls(jnp.where(mask, losses, 0).sum(), confusion, invalid)

    def merge(self, other: "Metrics") -> "Metrics":
        """Returns the metrics of the examples of both.

        Raises:
          UserError: they are of different numbers of classes.
        """
        if self.confusion.shape != other.confusion.shape:
            ours, theirs = len(self.confusion), len(other.confusion)
            raise UserError(
                f"metrics of {ours} and of {theirs} classes cannot be merged; expected "
                f"equal numbers, such as Metrics.empty({theirs})"
            )
        return Metrics(
            self.loss_sum + other.loss_sum,
            self.confusion + other.confusion,
            self.invalid + other.invalid,
        )

    @property
    def sums(self) -> dict[str, Array | np.ndarray | float]:
        """The arrays in a checkpoint; `invalid` is 0 whenever one is saved."""
        return {"loss_sum": self.loss_sum, "confusion": self.confusion}

    @property
    def count(self) -> Int[Array | np.ndarray, ""]:
        """Number of examples."""
        return self.confusion.sum()

    def compute(self) -> dict[str, Any]:
        """Returns mean `loss`, `accuracy` and `count` as Python numbers.

        Raises:
          UserError: labels were not valid.
        """
        if invalid := int(self.invalid):
            raise UserError(
                f"invalid labels or weights: {invalid:,}, and their examples were left "
                f"out; expected integers from 0 to {len(self.confusion) - 1}, or "
                f"distributions over {len(self.confusion)} classes, and weights ≥ 0. "
                "Correct them, or set the batch's mask to False there"
            )
        confusion = np.asarray(self.confusion)
        count = int(confusion.sum())
        return {
            "loss": float(self.loss_sum) / max(count, 1),
            "accuracy": int(np.trace(confusion)) / max(count, 1),
            "count": count,
        }

    def per_class(self) -> dict[str, np.ndarray]:
        """Returns `precision`, `recall`, `f1`, float64 `[classes]`, 0 if undefined."""
        confusion = np.asarray(self.confusion, np.float64)
        correct = np.diagonal(confusion)
        predicted, actual = confusion.sum(axis=0), confusion.sum(axis=1)
        return {
            "precision": correct / np.maximum(predicted, 1),
            "recall": correct / np.maximum(actual, 1),
            "f1": 2 * correct / np.maximum(predicted + actual, 1),
        }
