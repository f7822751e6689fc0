"""Draws validation and test examples from the training examples, by class."""

import dataclasses
from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from flaxmnist.errors import UserError

# Share of the training examples for validation, as the tutorials hold out 5,000 of
# 60,000; and of all examples for the test.
VALIDATION_SHARE, TEST_SHARE = Fraction(1, 12), Fraction(1, 6)


@dataclasses.dataclass(frozen=True)
class Draw:
    """How to draw the splits that a data set does not have.

    Attributes:
      validation_share: of the training examples; None for a twelfth.
      seed: of the draw.
    """

    validation_share: float | None = None
    seed: int = 0

    def check_unused(self) -> None:
        """Raises UserError if a share is given, because a validation split exists."""
        if self.validation_share is not None:
            raise UserError(
                f"data.validation_share={self.validation_share:g} has no effect on "
                "this data set, which has its validation split already. Leave out the "
                "option"
            )

    def rows(self, labels: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns masks of the training examples for each split that is drawn.

        Args:
          labels: split → labels `[count]` of the splits that exist, "train" among them.

        Returns:
          bool `[count]` of "test" and "validation", if they do not exist, and of
          "train"; empty if nothing is drawn.

        Raises:
          UserError: `validation_share` is given, but a validation split exists.
        """
        if "validation" in labels:
            self.check_unused()
        share = VALIDATION_SHARE
        if self.validation_share is not None:
            share = Fraction(self.validation_share).limit_denominator(10**6)
        train = np.ones(len(labels["train"]), bool)
        drawn = {}
        for split, part in (("test", TEST_SHARE), ("validation", share)):
            if split not in labels:
                drawn[split] = np.zeros(len(train), bool)
                chosen = stratified(labels["train"][train], part, self.seed)
                drawn[split][np.flatnonzero(train)[chosen]] = True
                train = train & ~drawn[split]
        return {**drawn, "train": train} if drawn else {}


def stratified(labels: np.ndarray, share: Fraction, seed: int) -> np.ndarray:
    """Returns a mask of a share of each class, bool `[count]`.

    Sorts by class, in random order within each class, and takes examples at equal
    distances. The only example of a class is not taken, unless nothing else would be.
    """
    draws = np.random.Philox(seed).random_raw(len(labels))
    order = np.lexsort((draws, labels))
    places = np.arange(len(labels), dtype=np.int64)
    over, under = share.numerator, share.denominator
    taken = (places + 1) * over // under > places * over // under
    taken &= (np.bincount(labels) > 1)[labels[order]]
    chosen = np.zeros(len(labels), bool)
    chosen[order[taken] if taken.any() else order[-1:]] = True
    return chosen


def folds(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Returns the fold of each example, from 0 to `count` - 1, `[examples]`.

    The sizes of two folds differ by one example at most, and so do those of a class.
    """
    draws = np.random.Philox(seed).random_raw(len(labels))
    found = np.empty(len(labels), np.int64)
    found[np.lexsort((draws, labels))] = np.arange(len(labels)) % count
    return found


def is_unlike(part: np.ndarray, labels: np.ndarray) -> bool:
    """Returns whether the classes of a part differ from all by more than chance.

    Uses Pearson's chi-squared statistic. If the part is drawn at random, its mean is
    the number of degrees of freedom.
    """
    counts = np.bincount(labels)
    freedom = np.count_nonzero(counts) - 1
    expected = (counts * len(part) / max(len(labels), 1))[counts > 0]
    found = np.bincount(part, minlength=len(counts))[counts > 0]
    statistic = ((found - expected) ** 2 / np.maximum(expected, 1e-9)).sum()
    return bool(freedom > 0 and statistic > freedom + 10 * np.sqrt(2 * freedom))
