"""Divides glyphs into digits, where a model recognizes the parts best.

A path through the cuts of a glyph is chosen by dynamic programming over the scores of
its parts (LeCun et al., 1998, "Gradient-Based Learning Applied to Document
Recognition", section VII).
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from flaxmnist.core import mnist
from flaxmnist.core.calibration import UNCALIBRATED, Calibration
from flaxmnist.core.state import TrainState
from flaxmnist.inference.predict import Prediction, predict_prepared
from flaxmnist.pictures.digits import Glyph
from flaxmnist.pictures.normalize import normalize
from flaxmnist.pictures.prepare import Prepared
from flaxmnist.pictures.touching import Cut, find_cuts, piece

# Weights of the score of a part: a constant, the margin of the logits, the square of
# the width, the deviation of the height, and the ink and the loops of the cut at its
# right. They maximize the likelihood of the right paths (a conditional random field),
# for made photographs of numbers and two networks (docs/results.md, "Photographs").
_PART, _MARGIN, _WIDTH, _HEIGHT, _INK, _HOLE = -7.7, 7.5, -2.7, -7.9, -7.1, -2.7
# Score of a part that is lower than a digit, and left out.
_SCRAP = -5.7
# Heights of such a part, and the widest part, as shares of the height of the line.
_LOW, _WIDE = 0.4, 1.4
# Least ink of a cut that divides digits that touch, as a share of that height.
_TOUCH = 0.05


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """The part of a glyph between two borders.

    Attributes:
      first: index of the border at its left; 0 is that of the glyph.
      last: index of the border at its right.
      glyph: its ink.
      cuts: at its left and at its right; None at the borders of the glyph.
    """

    first: int
    last: int
    glyph: Glyph
    cuts: tuple[Cut | None, Cut | None]

    @property
    def height(self) -> float:
        """Height as a share of that of the line."""
        return self.glyph.strength.shape[0] / self.glyph.line_height

    @property
    def width(self) -> float:
        """Width as a share of the height of the line."""
        return self.glyph.strength.shape[1] / self.glyph.line_height

    @property
    def is_cut(self) -> bool:
        """Whether a digit touched another one."""
        return any(cut is not None and cut.ink > _TOUCH for cut in self.cuts)

    @functools.cached_property
    def penalty(self) -> float:
        """The score without that of the model."""
        right = self.cuts[1]
        cut = 0.0 if right is None else _INK * right.ink + _HOLE * right.hole
        if self.height < _LOW:
            return cut + _SCRAP
        return cut + _PART + _WIDTH * self.width**2 + _HEIGHT * abs(self.height - 1)


def divide(
    glyphs: Sequence[Glyph],
    state: TrainState,
    calibration: Calibration = UNCALIBRATED,
) -> Iterator[tuple[Part, Prediction]]:
    """Yields the digits of glyphs, in their order, with predictions."""
    options = [list(_parts(glyph)) for glyph in glyphs]
    digits = [part for parts in options for part in parts if part.height >= _LOW]
    images = [Prepared(normalize(part.glyph.strength)) for part in digits]
    found = predict_prepared(images, state, mnist.CLASS_NAMES, calibration)
    predictions = dict(zip(digits, found, strict=True))
    margins = {part: _margin(one) for part, one in predictions.items()}
    # Networks differ in the scale of their logits. Those of zeros have no margins.
    typical = (np.percentile(list(margins.values()), 80) if margins else 0) or 1.0
    scores = {part: _MARGIN * min(m / typical, 1.3) for part, m in margins.items()}
    for parts in options:
        for part in _best_path(parts, scores):
            if part in predictions:
                yield part, predictions[part]


def _parts(glyph: Glyph) -> Iterator[Part]:
    """Yields a glyph and its parts between any two cuts that may be digits."""
    borders = [None, *find_cuts(glyph), None]
    end = len(borders) - 1
    yield Part(0, end, glyph, (None, None))
    for first in range(end):
        for last in range(first + 1, end + (first > 0)):
            cuts = borders[first], borders[last]
            if (found := piece(glyph, *cuts)) is None:
                continue
            part = Part(first, last, found, cuts)
            if part.width > _WIDE:
                break
            yield part


def _margin(prediction: Prediction) -> float:
    """Returns by how much the largest logit exceeds the mean of the logits."""
    return float(prediction.logits.max() - prediction.logits.mean())


def _best_path(parts: Sequence[Part], scores: Mapping[Part, float]) -> list[Part]:
    """Returns the adjoining parts of a glyph with the highest sum of scores."""
    best: dict[int, tuple[float, list[Part]]] = {0: (0.0, [])}
    for part in sorted(parts, key=lambda part: part.first):
        if part.first in best:
            score, path = best[part.first]
            score += part.penalty + scores.get(part, 0.0)
            # Some path must be the best, even if no score is a number.
            if part.last not in best or score > best[part.last][0]:
                best[part.last] = score, [*path, part]
    return best[max(part.last for part in parts)][1]
