"""Metrics as sums over examples, which do not depend on the batch size."""

import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from flaxmnist.core import mnist
from flaxmnist.errors import UserError, dtype_and_shape, shown
from flaxmnist.extensions import ExtensionPoint, Several

# From logits `[batch, classes]` and labels `[batch]` to a value per example.
Metric = Callable[[Array, Array], Array]
# Names of other values in a line of metrics.jsonl.
_FIGURES = (
    *("loss", "accuracy", "count", "step", "epoch", "split", "learning_rate"),
    *("images_per_second", "gradient_norm", "parameter_norm", "metrics", "options"),
)


def top5(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"]
) -> Bool[Array, " batch"]:
    """Returns whether the label is among the five classes with the largest logits.

    Of equal logits, the first is taken, as in the accuracy.
    """
    _, best = jax.lax.top_k(logits, min(5, logits.shape[1]))
    return (best == labels[:, None]).any(axis=1)


def macro_f1(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"]
) -> Float[Array, ""]:
    """Stands for the mean F1 of the classes, which `Metrics.compute` derives.

    It is the mean over the classes that occur as labels or predictions, as in
    scikit-learn.
    """
    raise NotImplementedError


SHIPPED: dict[str, Metric] = {"top5": top5, "macro_f1": macro_f1}
POINT = ExtensionPoint(SHIPPED, filled=("logits", "labels"))


class _Names(Several):
    def _canonical(self, value: Any) -> tuple[str, ...]:
        chosen = super()._canonical(value)
        found = [label(item) for item in chosen]
        for name in found:
            if name in _FIGURES or found.count(name) > 1:
                raise UserError(f": the name {name!r} is taken; rename the function")
        for item in chosen:
            try:
                inspect.signature(POINT.callable(item)).bind(None, None)
            except TypeError as error:
                raise UserError(
                    f": {item} cannot be called with logits and labels ({error}); "
                    "metrics have no options, so give each other parameter a default"
                ) from None
        return chosen


# A tuple of metrics, or a text such as "top5,macro_f1".
NAMES = _Names(POINT)


def label(name: str) -> str:
    """Returns the name in logs of a metric, such as ``"function"``."""
    return name.rpartition(":")[2].rpartition(".")[2]


def as_pairs(metrics: Any) -> tuple[tuple[str, Metric], ...]:
    """Returns functions by name as pairs.

    Raises:
      UserError: they are not functions by name, or a name is taken.
    """
    try:
        named = dict(metrics)
    except (TypeError, ValueError):
        raise UserError(
            f"metrics={shown(metrics)}: expected a dict of functions of logits and "
            "labels by name"
        ) from None
    for name, metric in named.items():
        if name in _FIGURES or not callable(metric):
            raise UserError(
                f"metrics={{{name!r}: {shown(metric)}}}: expected a function of logits "
                f"and labels, and a name other than {', '.join(_FIGURES)}"
            )
    return tuple(named.items())


def build(names: Sequence[str]) -> tuple[tuple[str, Metric], ...]:
    """Returns the metrics of a configuration, by their names in logs."""
    return tuple((label(name), POINT.callable(name)) for name in names)


@struct.dataclass
class Metrics:
    """Sums over examples. Metrics of several batches merge by addition.

    Attributes:
      loss_sum: float `[]`, sum of the losses in nats: in training those that are
        minimized, in evaluation the cross-entropies.
      confusion: int32 `[classes, classes]`, examples by label (row) and prediction
        (column).
      invalid: int32 `[]`, number of examples excluded because their label is neither a
        class nor a distribution, or their weight is negative or not finite.
      extra: float `[]`, sums of further metrics by name.
      derived: names of further metrics that follow from `confusion` (static).
    """

    loss_sum: Float[Array, ""] | float
    confusion: Int[Array | np.ndarray, "*runs classes classes"]
    invalid: Int[Array, ""] | int = 0
    extra: dict[str, Float[Array, ""]] = struct.field(default_factory=dict)
    derived: tuple[str, ...] = struct.field(pytree_node=False, default=())

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
    def empty(
        cls,
        num_classes: int = mnist.NUM_CLASSES,
        metrics: Collection[tuple[str, Metric]] = (),
    ) -> "Metrics":
        """Returns the metrics of zero examples.

        Args:
          num_classes: number of classes.
          metrics: further metrics by name, such as those of a state.
        """
        return cls(
            loss_sum=jnp.zeros(()),
            confusion=jnp.zeros((num_classes, num_classes), jnp.int32),
            invalid=jnp.zeros((), jnp.int32),
            extra={
                name: jnp.zeros(())
                for name, metric in metrics
                if metric is not macro_f1
            },
            derived=tuple(name for name, metric in metrics if metric is macro_f1),
        )

    @classmethod
    def of(
        cls,
        losses: Float[Array, " batch"],
        logits: Float[Array, "batch classes"],
        labels: Int[Array, " batch"],
        mask: Bool[Array, " batch"],
        valid: Bool[Array, " batch"] | bool = True,
        metrics: Collection[tuple[str, Metric]] = (),
    ) -> "Metrics":
        """Returns the metrics of a batch.

        Args:
          losses: of each example, in nats.
          logits: outputs of the model.
          labels: classes.
          mask: False where an example is padding.
          valid: False where a label is invalid; such an example counts in `invalid`
            only.
          metrics: further metrics by name, from `logits` and `labels`.

        Raises:
          UserError: such a metric does not return a value per example.
        """
        predictions = jnp.argmax(logits, axis=-1)
        invalid = (mask & jnp.logical_not(valid)).sum(dtype=jnp.int32)
        mask = mask & valid
        empty = jnp.zeros((logits.shape[1],) * 2, jnp.int32)
        confusion = empty.at[labels, predictions].add(mask)
        made = cls.empty(logits.shape[1], metrics)
        extra = {
            name: jnp.where(mask, _per_example(name, metric, logits, labels), 0).sum()
            for name, metric in metrics
            if name in made.extra
        }
        loss_sum = jnp.where(mask, losses, 0).sum()
        return cls(loss_sum, confusion, invalid, extra, made.derived)

    def merge(self, other: "Metrics") -> "Metrics":
        """Returns the metrics of the examples of both.

        Raises:
          UserError: they are of different numbers of classes, or different metrics.
        """
        names = [sorted({*one.extra, *one.derived}) for one in (self, other)]
        if names[0] != names[1]:
            raise UserError(
                f"metrics {names[0]} and {names[1]} cannot be merged; "
                "expected equal ones, such as Metrics.empty(num_classes, state.metrics)"
            )
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
            jax.tree.map(jnp.add, self.extra, other.extra),
            self.derived,
        )

    @property
    def sums(self) -> dict[str, Any]:
        """The arrays in a checkpoint; `invalid` is 0 whenever one is saved."""
        found = {"loss_sum": self.loss_sum, "confusion": self.confusion}
        return found | ({"extra": self.extra} if self.extra else {})

    @property
    def count(self) -> Int[Array | np.ndarray, ""]:
        """Number of examples."""
        return self.confusion.sum(axis=(-2, -1))

    def compute(self) -> dict[str, Any]:
        """Returns mean `loss`, `accuracy`, `count` and further metrics.

        They are Python numbers. If the metrics of several runs are stacked, as
        `jax.vmap` of a step stacks them, they are arrays `[runs]`.

        Raises:
          UserError: labels were not valid.
        """
        confusion = np.asarray(self.confusion)
        classes = confusion.shape[-1]
        if invalid := int(np.sum(self.invalid)):
            raise UserError(
                f"invalid labels or weights: {invalid:,}, and their examples were left "
                f"out; expected integers from 0 to {classes - 1}, or "
                f"distributions over {classes} classes, and weights ≥ 0. "
                "Correct them, or set the batch's mask to False there"
            )
        count = confusion.sum(axis=(-2, -1))
        total = np.maximum(count, 1)
        sums = {"loss": self.loss_sum, "accuracy": confusion.trace(0, -2, -1)}
        found = {
            name: np.asarray(value, np.float64) / total
            for name, value in (sums | self.extra).items()
        }
        found["count"] = count
        for name in self.derived:
            occurs = (confusion.sum(axis=-1) + confusion.sum(axis=-2) > 0).sum(axis=-1)
            found[name] = self.per_class()["f1"].sum(axis=-1) / np.maximum(occurs, 1)
        return {
            name: value if value.ndim else value.item() for name, value in found.items()
        }

    def per_class(self) -> dict[str, np.ndarray]:
        """Returns `precision`, `recall`, `f1`, float64 `[classes]`, 0 if undefined."""
        confusion = np.asarray(self.confusion, np.float64)
        correct = np.diagonal(confusion, axis1=-2, axis2=-1)
        predicted, actual = confusion.sum(axis=-2), confusion.sum(axis=-1)
        return {
            "precision": correct / np.maximum(predicted, 1),
            "recall": correct / np.maximum(actual, 1),
            "f1": 2 * correct / np.maximum(predicted + actual, 1),
        }


def _per_example(name: str, metric: Metric, logits: Array, labels: Array) -> Array:
    """Returns the values of a metric, float32 `[batch]`.

    Raises:
      UserError: the metric returned something else.
    """
    found: Any = metric(logits, labels)
    if getattr(found, "shape", None) != labels.shape:
        kind = dtype_and_shape(found) if hasattr(found, "shape") else shown(found)
        raise UserError(
            f"metrics: {name} returned {kind}; expected values [{len(labels)}], one "
            "per example"
        )
    return jnp.asarray(found, jnp.float32)
