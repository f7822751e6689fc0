"""Losses: callables that compare by value, from logits and labels to losses."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Num

from flaxmnist.errors import UserError, dtype_and_shape, shown
from flaxmnist.extensions import ExtensionPoint
from flaxmnist.options import OptionType, canonicalize, option, optional, real

__all__ = ["CrossEntropy", "Focal", "balanced_weights"]

# From logits `[batch, classes]` and labels, integers `[batch]` or distributions
# `[batch, classes]`, to losses `[batch]`.
Loss = Callable[[Array, Array], Array]
BALANCED = "balanced"


def _weights(value: Any) -> str | tuple[float, ...]:
    if isinstance(value, str) and value == BALANCED:
        return value
    weights = tuple(map(real(0).convert, np.asarray(value).tolist()))
    if not any(weights):
        raise ValueError
    return weights


CLASS_WEIGHTS = optional(
    OptionType(
        "a number per class, 0 or more and one at least above 0, such as (1.0, 2.5), "
        f"or {BALANCED!r}",
        _weights,
    )
)
CLASS_WEIGHTS_HELP = (
    "Factor of each class in the loss; balanced: inversely proportional to its "
    "number of training examples."
)


class _Loss:
    """A frozen dataclass of options, each checked and in canonical form."""

    def __post_init__(self) -> None:
        canonicalize("loss", self)


@dataclasses.dataclass(frozen=True)
class CrossEntropy(_Loss):
    """Softmax cross-entropy in nats.

    Attributes:
      label_smoothing: share of each label that is spread equally over all classes
        (Szegedy et al., 2016, "Rethinking the Inception Architecture").
      class_weights: factor of each class's term; None for equal classes. The mean over
        a batch is divided by the number of examples, as in Keras.

    Raises:
      UserError: an option is not of its type.
    """

    label_smoothing: float = option(
        0.0,
        real(0, below=1),
        "Share of each label that is spread equally over all classes.",
    )
    class_weights: str | tuple[float, ...] | None = option(
        None,
        CLASS_WEIGHTS,
        CLASS_WEIGHTS_HELP,
    )

    def __call__(
        self,
        logits: Float[Array, "batch classes"],
        labels: Num[Array, " batch"] | Num[Array, "batch classes"],
    ) -> Float[Array, " batch"]:
        """Returns the loss of each example."""
        losses: Array
        if self.label_smoothing or self.class_weights is not None:
            targets = _targets(logits, labels)
            targets = optax.smooth_labels(targets, self.label_smoothing)
            targets *= _factors(self.class_weights, logits)
            losses = -(targets * jax.nn.log_softmax(logits)).sum(axis=-1)
        elif labels.ndim == 1:
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        else:
            losses = optax.softmax_cross_entropy(logits, labels)
        return losses


@dataclasses.dataclass(frozen=True)
class Focal(_Loss):
    """Focal loss in nats, which gives less weight to examples that are easy.

    The cross-entropy of a class with probability `p` is multiplied by `(1 - p)^gamma`
    (Lin et al., 2017, "Focal Loss for Dense Object Detection").

    Attributes:
      gamma: exponent, 0 or more; 0 is cross-entropy.
      class_weights: see :class:`CrossEntropy`; `alpha` in the paper.

    Raises:
      UserError: an option is not of its type.
    """

    gamma: float = option(2.0, real(0), "Exponent; 0 is cross-entropy.")
    class_weights: str | tuple[float, ...] | None = option(
        None,
        CLASS_WEIGHTS,
        CLASS_WEIGHTS_HELP,
    )

    def __call__(
        self,
        logits: Float[Array, "batch classes"],
        labels: Num[Array, " batch"] | Num[Array, "batch classes"],
    ) -> Float[Array, " batch"]:
        """Returns the loss of each example."""
        log_p = jax.nn.log_softmax(logits)
        # The derivative of the power is infinite at zero, if gamma is less than one.
        rest = jnp.maximum(-jnp.expm1(log_p), 1e-30)
        targets = _targets(logits, labels) * _factors(self.class_weights, logits)
        return -(targets * rest**self.gamma * log_p).sum(axis=-1)


CROSS_ENTROPY = CrossEntropy()
LOSSES: dict[str, type[CrossEntropy] | type[Focal]] = {
    "cross_entropy": CrossEntropy,
    "focal": Focal,
}


POINT = ExtensionPoint(LOSSES, filled=("logits", "labels", "num_classes"))


def build(
    name: str, labels: np.ndarray, num_classes: int, **given: Any
) -> Callable[..., Any]:
    """Returns the loss `name` with its options.

    Args:
      name: one of `LOSSES`, or the specification of a function of logits and labels.
      labels: integers `[count]` of the training split, for balanced `class_weights`.
      num_classes: number of classes; passed if the callable takes it.
      **given: options of the loss.

    Raises:
      UserError: an option has an invalid value.
    """
    if given.get("class_weights") == BALANCED:
        given["class_weights"] = balanced_weights(labels, num_classes)
    return POINT.bind(name, given, num_classes=num_classes)


def per_example(
    loss: Loss, logits: Float[Array, "batch classes"], labels: Array
) -> Float[Array, " batch"]:
    """Returns the loss of each example, and checks what the callable returned.

    Raises:
      UserError: it is not an array of that shape.
    """
    losses: Any = loss(logits, labels)
    if getattr(losses, "shape", None) != logits.shape[:1]:
        found = dtype_and_shape(losses) if hasattr(losses, "shape") else shown(losses)
        raise UserError(
            f"loss={loss!r} returned {found}; expected losses [{len(logits)}], one per "
            "example"
        )
    return jnp.asarray(losses)


def balanced_weights(labels: Any, num_classes: int) -> tuple[float, ...]:
    """Returns weights inversely proportional to the counts of the classes.

    Their mean over the examples is one, as with ``class_weight="balanced"`` of
    scikit-learn. A class without examples gets the weight one.

    Args:
      labels: integers `[count]`, from 0 to `num_classes` - 1.
      num_classes: number of classes.

    Raises:
      UserError: a label is out of this range.
    """
    wrong = [label for label in np.unique(labels) if not 0 <= label < num_classes]
    if wrong:
        raise UserError(
            f"label {wrong[0]}; expected labels from 0 to {num_classes - 1}"
        )
    counts = np.bincount(np.asarray(labels), minlength=num_classes)
    balanced = counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return tuple(np.where(counts, balanced, 1.0).tolist())


def _targets(logits: Array, labels: Array) -> Float[Array, "batch classes"]:
    """Returns labels as distributions."""
    if labels.ndim == 1:
        return jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return labels.astype(logits.dtype)


def _factors(
    class_weights: str | tuple[float, ...] | None, logits: Array
) -> Float[Array, "#batch classes"] | float:
    """Returns the weights of the classes as a row."""
    if class_weights is None:
        return 1.0
    if isinstance(class_weights, str):
        raise UserError(
            f"loss.class_weights={class_weights!r} requires labels to count; expected "
            "class_weights=balanced_weights(labels, num_classes)"
        )
    if len(class_weights) != (classes := logits.shape[-1]):
        raise UserError(
            f"loss.class_weights has {len(class_weights)} numbers; expected {classes}, "
            "one per class"
        )
    return jnp.asarray(class_weights, logits.dtype)[None]
