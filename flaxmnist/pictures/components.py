"""Searches the connected marks that most likely are digits."""

import dataclasses
import functools
import itertools
import os
from collections.abc import Collection, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor

import cv2
import numpy as np
from jaxtyping import Bool

from flaxmnist.pictures.background import Light, ground_of, marks, smooth
from flaxmnist.pictures.candidates import (
    MAX_GROUP,
    MIN_RATIO,
    Labels,
    Mark,
    View,
    candidates,
    highest_score,
    measured,
)
from flaxmnist.pictures.files import Gray
from flaxmnist.pictures.rules import connected, without_rules

# Sides of the kernel for the ground, as shares of the picture.
SIZES = (0.06, 0.25, 0.6)
# Smallest kernel in pixels: in a small picture, a stroke is wider than 6 % of it.
_MIN_KERNEL = 25
# Thresholds of the marks, from the highest.
LEVELS = (0.6, 0.4, 0.2, 0.1, 0.05)
# Lowest contrast, as a share of the light, and as a multiple of the noise.
MIN_CONTRAST, MIN_SIGNAL = 0.06, 4.0
# Marks that are measured in each layer, and in the one that is chosen.
_MAX_MARKS, _MAX_CHOSEN = 24, 1_500
# Power of the number of digits in the score of a layer.
_NUMBER = 0.15
# A square kernel leaves marks along slanted edges, at places that depend on its size.
# Factor of the score of a layer whose digits no other kernel finds, and least overlap
# of two marks that are the same.
_UNSTABLE, _SAME = 0.5, 0.8
# Largest share of the outline of a digit that lies on the border of the picture.
_MAX_CONTACT = 0.3
DIGIT_AT_BORDER = "the digit touches the border"
NUMBER_AT_BORDER = "a digit touches the border"
MARK_AT_BORDER = "a mark at the border is not read"


@dataclasses.dataclass(frozen=True)
class Finding:
    """Marks that may be digits.

    Attributes:
      mask: the pixels of the marks.
      ground: light of the ground below.
      box: top, left, bottom, right in pixels.
      height: of the mark that most likely is a digit, in pixels.
      is_dark: whether the marks are darker than the ground.
      level: contrast of the same mark.
      noise: contrast of the paper around the marks.
      warnings: reasons to doubt the finding.
    """

    mask: Bool[np.ndarray, "height width"]
    ground: Light
    box: tuple[int, int, int, int]
    height: int
    is_dark: bool
    level: float
    noise: float
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Layer:
    """The marks of a view at one threshold.

    Attributes:
      view: the picture.
      threshold: lowest contrast of the marks.
      labels: number of the mark at each pixel; 0 for none.
      candidates: marks that may be digits, with the highest score of each.
      noise: highest contrast of most of the paper.
      marks: the candidates that are digits, with their scores; none if no score of the
        layer could be high enough.
    """

    view: View
    threshold: float
    labels: Labels
    candidates: list[Mark]
    noise: float
    marks: list[Mark]

    @functools.cached_property
    def best(self) -> Mark | None:
        """The mark that most likely is a digit; None if there is no mark."""
        return max(self.marks, key=lambda mark: mark.score, default=None)

    @property
    def digits(self) -> list[Mark]:
        """The best mark, and those that may be digits of the same number."""
        if self.best is None:
            return []
        return [mark for mark in self.marks if _is_alike(mark, self.best)]

    @property
    def score(self) -> float:
        """How likely the marks are digits; a number counts more than one digit."""
        if self.best is None:
            return 0.0
        return self.best.score * len(self.digits) ** _NUMBER


def search(gray: Gray, steps: Collection[str]) -> Finding | None:
    """Returns the marks that most likely are digits; None if nothing is found.

    Args:
      gray: a small picture.
      steps: see :func:`flaxmnist.pictures.ink.find_ink`.
    """
    best: Layer | None = None
    highest = 0.0
    # OpenCV and NumPy release the interpreter.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        views = _views(gray, steps, pool)
        for threshold in LEVELS:
            # No layer at a lower threshold has a higher score.
            if highest_score(threshold) * _MAX_MARKS**_NUMBER < highest:
                break
            layer_of = functools.partial(_layer, threshold=threshold, least=highest)
            layers = list(pool.map(layer_of, views))
            for layer in layers:
                score = layer.score
                if score > highest and not _is_stable(layer, layers):
                    score *= _UNSTABLE
                if score > highest:
                    best, highest = layer, score
    if best is None:
        return None
    if len(best.marks) > _MAX_MARKS // 2:  # A page of numbers.
        best = _layer(best.view, best.threshold, most=_MAX_CHOSEN)
    return _finding(best)


def _is_stable(layer: Layer, layers: Iterable[Layer]) -> bool:
    """Returns whether a layer with another kernel has one of the digits, too."""
    digits = layer.digits
    return any(
        digit.overlap(mark) > _SAME and measured(mark, other.view, other.labels).score
        for other in layers
        if other is not layer and other.view.is_dark == layer.view.is_dark
        for mark in other.candidates
        for digit in digits
    )


def _views(gray: Gray, steps: Collection[str], pool: Executor) -> list[View]:
    light = smooth(gray)
    side = max(gray.shape)

    def view(seen: Light, share: float) -> View:
        if "light" in steps:
            ground = ground_of(seen, max(_MIN_KERNEL, round(share * side)))
        else:
            ground = np.full_like(seen, np.median(seen))
        return View(seen, ground, marks(seen, ground), is_dark=seen is light)

    polarities = (light, 1 - light) if "invert" in steps else (1 - light,)
    kinds = itertools.product(polarities, SIZES)
    return list(pool.map(view, *zip(*kinds, strict=True)))


def _layer(
    view: View, threshold: float, least: float = 0.0, most: int = _MAX_MARKS
) -> Layer:
    """Returns the marks above a threshold.

    Args:
      view: the picture.
      threshold: lowest contrast of the marks.
      least: its marks are measured if the score of the layer may be higher than this.
      most: number of candidates.
    """
    middle, noise = view.paper
    paper = middle + 2 * noise
    if threshold < paper or MIN_RATIO * threshold > view.highest:
        empty = np.zeros_like(view.light, np.uint8)
        return Layer(view, threshold, empty, [], paper, [])
    mask = (view.contrast > threshold).view(np.uint8)
    # Chalk and dry pens leave gaps.
    gap = np.ones((3, 3) if max(mask.shape) < 400 else (5, 5), np.uint8)
    mask = np.asarray(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, gap), np.uint8)
    labels, stats = connected(without_rules(mask))
    lowest = max(MIN_CONTRAST, middle + MIN_SIGNAL * noise)
    found = candidates(view, labels, stats, threshold, lowest, most)
    highest = max((each.score for each in found), default=0.0) * len(found) ** _NUMBER
    digits = []
    if highest > least:
        digits = [measured(each, view, labels) for each in found]
        digits = [each for each in digits if each.score > 0]
    return Layer(view, threshold, labels, found, paper, digits)


def _finding(layer: Layer) -> Finding:
    best = layer.best
    assert best is not None
    kept, warnings = [best], []
    for mark in layer.marks:
        if mark is best:
            continue
        if mark.contact <= best.contact + 0.02:
            kept += [mark] * _belongs(mark, best)
        elif _is_neighbour(mark, best):
            if mark.contact <= _MAX_CONTACT:
                kept.append(mark)
            elif MARK_AT_BORDER not in warnings:
                warnings.append(MARK_AT_BORDER)
    if any(mark.contact for mark in kept):
        warnings.append(NUMBER_AT_BORDER if len(kept) > 1 else DIGIT_AT_BORDER)
    boxes = np.array([mark.box for mark in kept])
    top, left = map(int, boxes[:, :2].min(0))
    bottom, right = map(int, boxes[:, 2:].max(0))
    return Finding(
        np.isin(layer.labels, [mark.label for mark in kept]),
        layer.view.ground,
        (top, left, bottom, right),
        best.height,
        layer.view.is_dark,
        best.contrast,
        layer.noise,
        tuple(warnings),
    )


def _is_alike(mark: Mark, other: Mark) -> bool:
    """Returns whether two marks may be digits of one number."""
    sizes = sorted((mark.height, other.height))
    scores = sorted((mark.score, other.score))
    return sizes[0] > 0.6 * sizes[1] and scores[0] > 0.5 * scores[1]


def _belongs(mark: Mark, best: Mark) -> bool:
    """Returns whether a mark is a part of the best one, or another digit."""
    tall = best.height
    largest = 2.5 * max(tall, best.width)
    if mark.height > largest or mark.contrast < 0.5 * best.contrast:
        return False
    if mark.is_line and mark.width > 1.1 * best.width:
        return False
    is_digit = mark.height >= 0.4 * tall and mark.score >= 0.2 * best.score
    # Ink of one pen has about the same contrast everywhere, also in a shadow.
    is_digit &= mark.contrast >= 0.7 * best.contrast
    if is_digit:
        return mark.width <= max(largest, MAX_GROUP * tall)
    return mark.width <= largest and _gap(mark, best) < 0.15 * tall


def _is_neighbour(mark: Mark, best: Mark) -> bool:
    """Returns whether a mark at the border may be a digit of the same number."""
    heights = sorted((mark.height, best.height))
    contrasts = sorted((mark.contrast, best.contrast))
    shared = min(mark.box[2], best.box[2]) - max(mark.box[0], best.box[0])
    return (
        min(heights[0], shared / 0.7) > 0.7 * heights[1]
        and contrasts[0] > 0.7 * contrasts[1]
        and mark.width < 1.5 * max(best.height, best.width)
        and not mark.is_line
    )


def _gap(one: Mark, other: Mark) -> float:
    """Returns the distance of two boxes in pixels."""
    down = max(one.box[0] - other.box[2], other.box[0] - one.box[2], 0)
    across = max(one.box[1] - other.box[3], other.box[1] - one.box[3], 0)
    return float(np.hypot(down, across))
