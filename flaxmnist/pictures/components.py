"""Searches connected marks that may be digits."""

import dataclasses
from collections.abc import Collection

import cv2
import numpy as np
from jaxtyping import Bool

from flaxmnist.pictures.background import Light, ground_of, marks, smooth
from flaxmnist.pictures.files import Gray
from flaxmnist.pictures.rules import without_rules

# Sides of the kernel for the ground, as shares of the picture.
SIZES = (0.06, 0.25, 0.6)
# Smallest kernel in pixels: in a small picture, a stroke is wider than 6 % of it.
_LEAST_KERNEL = 25
# Thresholds of the marks, from the highest.
LEVELS = (0.4, 0.2, 0.1, 0.05)
# Contrast of a component, as multiples of the threshold.
LEAST_RATIO, MAX_RATIO = 1.35, 3.2
# Lowest contrast, as a share of the light, and as a multiple of the noise.
LEAST_CONTRAST, LEAST_SIGNAL = 0.06, 4.0
# Marks that are measured in each layer, and in the one that is chosen.
_MAX_COMPONENTS, _MAX_CHOSEN = 24, 1_500
# Larger marks, as a share of the picture, are not more likely digits.
_MAX_SIZE = 0.5


@dataclasses.dataclass(frozen=True)
class Finding:
    """Marks that may be digits.

    Attributes:
      mask: the pixels of the marks.
      ground: light of the ground below.
      box: top, left, bottom, right in pixels.
      height: of the highest mark, in pixels.
      is_dark: whether the marks are darker than the ground.
      level: contrast of the marks.
      noise: contrast of the paper around them.
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
class Mark:
    """A connected mark.

    Attributes:
      label: its number in `Layer.labels`.
      box: top, left, bottom, right in pixels.
      area: in pixels.
      contrast: to the ground, from 0 to 1.
      threshold: that separated the mark from the ground.
      contact: share of its outline that lies on the border of the picture.
      score: how likely it is a digit; 0 for a mark that is not.
    """

    label: int
    box: tuple[int, int, int, int]
    area: int
    contrast: float
    threshold: float
    contact: float = 0.0
    score: float = 0.0

    @property
    def height(self) -> int:
        """In pixels."""
        return self.box[2] - self.box[0]

    @property
    def width(self) -> int:
        """In pixels."""
        return self.box[3] - self.box[1]


@dataclasses.dataclass(frozen=True)
class Layer:
    """The marks at one polarity, kernel and threshold.

    Attributes:
      is_dark: whether the marks are darker than the ground.
      ground: light of the ground; of the inverted picture if the marks are light.
      labels: number of the mark at each pixel; 0 for none.
      marks: that may be digits.
      noise: highest contrast of most of the paper.
    """

    is_dark: bool
    ground: Light
    labels: np.ndarray
    marks: list[Mark]
    noise: float

    @property
    def score(self) -> float:
        """How likely the marks are digits; a number counts more than one digit."""
        best = max(self.marks, key=lambda mark: mark.score, default=None)
        if best is None:
            return 0.0
        alike = sum(_is_alike(mark, best) for mark in self.marks)
        return best.score * alike**0.15


def search(gray: Gray, steps: Collection[str]) -> Finding | None:
    """Returns the marks that most likely are digits; None if nothing is found.

    Args:
      gray: a small picture.
      steps: see :func:`flaxmnist.pictures.ink.find_ink`.
    """
    light = smooth(gray)
    side = max(light.shape)
    grounds = []
    for is_dark in (True, False) if "invert" in steps else (False,):
        positive = light if is_dark else 1 - light
        for share in SIZES:
            ground = np.full_like(positive, np.median(positive))
            if "light" in steps:
                ground = ground_of(positive, max(_LEAST_KERNEL, round(share * side)))
            grounds.append((positive, ground, is_dark))
    best, highest, source = None, 0.0, None
    measured = [marks(positive, ground) for positive, ground, _ in grounds]
    for threshold in LEVELS:
        # No mark at a lower threshold has a higher score.
        if MAX_RATIO * threshold * _MAX_SIZE**0.5 < highest:
            break
        for (positive, ground, is_dark), mark in zip(grounds, measured, strict=True):
            given = positive, ground, mark, threshold, is_dark
            layer = _layer(*given)
            if layer.score > highest:
                best, highest, source = layer, layer.score, given
    if best is None or source is None:
        return None
    if len(best.marks) > _MAX_COMPONENTS // 2:  # A page of numbers.
        best = _layer(*source, most=_MAX_CHOSEN)
    return _finding(best)


def _layer(
    light: Light,
    ground: Light,
    mark: Light,
    threshold: float,
    is_dark: bool,
    *,
    most: int = _MAX_COMPONENTS,
) -> Layer:
    """Returns the marks above a threshold."""
    # The marks are a small part of the picture.
    step = max(1, max(mark.shape) // 128)
    sample = mark[::step, ::step]
    middle = float(np.median(sample))
    noise = 1.4826 * float(np.median(abs(sample - middle)))
    paper = middle + 2 * noise
    mask = (mark > threshold).astype(np.uint8)
    # Chalk and dry pens leave gaps.
    gap = np.ones((3, 3) if max(mask.shape) < 400 else (5, 5), np.uint8)
    mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, gap).astype(np.uint8)
    if threshold < paper or not mask.any():
        return Layer(is_dark, ground, np.zeros_like(mask, np.int32), [], paper)
    mask = without_rules(mask)
    # Three times as fast as OpenCV's default.
    _, labels, stats, _ = cv2.connectedComponentsWithStatsWithAlgorithm(
        mask, 8, cv2.CV_32S, cv2.CCL_GRANA
    )
    found = _marks(light, ground, mark, labels, stats, threshold, most)
    least = max(LEAST_CONTRAST, middle + LEAST_SIGNAL * noise)
    found = [each for each in found if each.contrast >= least]
    return Layer(is_dark, ground, labels, found, paper)


def _marks(light, ground, mark, labels, stats, threshold, most) -> list[Mark]:
    flat, count = labels.ravel(), len(stats)
    on = flat > 0
    values, names = mark.ravel()[on], flat[on]
    first = np.bincount(names, values, count)
    second = np.bincount(names, values * values, count)
    contrast = second / np.maximum(first, 1e-9)
    ratio = contrast / threshold
    good = (ratio >= LEAST_RATIO) & (ratio <= MAX_RATIO)
    good &= stats[:, cv2.CC_STAT_AREA] >= 6
    good[0] = False
    chosen = np.flatnonzero(good)
    extent = np.maximum(stats[:, cv2.CC_STAT_WIDTH], stats[:, cv2.CC_STAT_HEIGHT])
    weight = contrast * extent**0.5
    chosen = chosen[np.argsort(-weight[chosen])[:most]]
    found = []
    for label in chosen:
        left, top, wide, tall, area = map(int, stats[label])
        box = (top, left, top + tall, left + wide)
        measured = Mark(int(label), box, area, float(contrast[label]), threshold)
        found.append(_measure(measured, light, ground, labels))
    return [each for each in found if each.score > 0]


def _measure(mark: Mark, light: Light, ground: Light, labels: np.ndarray) -> Mark:
    """Returns a mark with its score."""
    top, left, bottom, right = mark.box
    reach = max(2, round(0.08 * max(mark.height, mark.width)))
    rows = slice(max(0, top - reach), bottom + reach)
    columns = slice(max(0, left - reach), right + reach)
    mask = (labels[rows, columns] == mark.label).astype(np.uint8)
    inner = cv2.erode(mask, np.ones((3, 3), np.uint8), borderValue=1)
    outline = (mask > 0) & (inner == 0)
    if not outline.any() or _is_rectangle(mark, mask):
        return mark
    near = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    lightest = cv2.dilate(light[rows, columns], near)
    below = ground[rows, columns]
    missing = marks(lightest, below)
    support = float((missing[outline] <= 0.4 * mark.contrast).mean())
    # The share of the surroundings that is as light as the ground.
    room = round(0.6 * max(mark.height, mark.width))
    rows = slice(max(0, top - room), bottom + room)
    columns = slice(max(0, left - room), right + room)
    step = max(1, (bottom - top + 2 * room) // 64)
    around = light[rows, columns][::step, ::step]
    beside = labels[rows, columns][::step, ::step] != mark.label
    level = (1 - 0.4 * mark.contrast) * float(np.median(below[mask > 0]))
    share = float((around[beside] >= level).mean()) if beside.any() else 0.0
    height, width = labels.shape
    contact = sum(
        int((labels[line] == mark.label).sum())
        for line, touches in (
            (np.s_[0], top == 0),
            (np.s_[-1], bottom == height),
            (np.s_[:, 0], left == 0),
            (np.s_[:, -1], right == width),
        )
        if touches
    ) / (outline.sum() + 1)
    return dataclasses.replace(
        mark,
        contact=contact,
        score=_score(mark, support, share, contact, labels.shape),
    )


def _is_rectangle(mark: Mark, mask: np.ndarray) -> bool:
    """Returns whether a mark is a frame, a sheet or a bar rather than a digit."""
    if max(mark.height, mark.width) > 2.2 * min(mark.height, mark.width):
        return False
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    outer = max(outlines, key=cv2.contourArea)
    _, (wide, tall), _ = cv2.minAreaRect(outer)
    return cv2.contourArea(outer) > 0.88 * wide * tall


def _score(
    mark: Mark, support: float, share: float, contact: float, shape: tuple[int, ...]
) -> float:
    """Returns how likely a mark is a digit.

    Args:
      mark: the mark.
      support: share of its outline at which the picture reaches the ground.
      share: share of its surroundings that is as light as the ground.
      contact: share of its outline that lies on the border of the picture.
      shape: of the picture.
    """
    if support < 0.5:
        return 0.0
    size = max(mark.height, mark.width) / max(shape)
    score = mark.contrast * support**4 * share * min(size, _MAX_SIZE) ** 0.5
    # The best threshold is half of the contrast.
    score *= np.exp(-(np.log(mark.contrast / mark.threshold / 2) ** 2))
    if mark.width > 3 * mark.height:
        score *= 0.1
    if contact:
        # A digit that is cropped tight reaches from border to border.
        is_tight = mark.height >= 0.95 * shape[0] and mark.width >= 0.95 * shape[1]
        score *= 0.7 * np.exp(-6 * max(0, contact - (0.3 if is_tight else 0.05)))
    return float(score)


def _finding(layer: Layer) -> Finding:
    best = max(layer.marks, key=lambda mark: mark.score)
    kept = [mark for mark in layer.marks if mark is best or _belongs(mark, best)]
    boxes = np.array([mark.box for mark in kept])
    top, left = map(int, boxes[:, :2].min(0))
    bottom, right = map(int, boxes[:, 2:].max(0))
    return Finding(
        np.isin(layer.labels, [mark.label for mark in kept]),
        layer.ground,
        (top, left, bottom, right),
        best.height,
        layer.is_dark,
        best.contrast,
        layer.noise,
        ("the digit touches the border",) if best.contact else (),
    )


def _is_alike(mark: Mark, other: Mark) -> bool:
    """Returns whether two marks may be digits of one number."""
    sizes = sorted((mark.height, other.height))
    scores = sorted((mark.score, other.score))
    return sizes[0] > 0.6 * sizes[1] and scores[0] > 0.5 * scores[1]


def _belongs(mark: Mark, best: Mark) -> bool:
    """Returns whether a mark is a part of the best one, or another digit."""
    extent, tall = max(mark.height, mark.width), best.height
    if extent > 2.5 * max(tall, best.width) or mark.contact > best.contact + 0.02:
        return False
    if mark.contrast < 0.5 * best.contrast:
        return False
    # An underline.
    if mark.width > 3 * mark.height and mark.width > 1.1 * best.width:
        return False
    is_digit = mark.height >= 0.4 * tall and mark.score >= 0.2 * best.score
    # Ink of one pen has about the same contrast everywhere, also in a shadow.
    is_digit &= mark.contrast >= 0.7 * best.contrast
    return is_digit or _gap(mark, best) < 0.15 * tall


def _gap(one: Mark, other: Mark) -> float:
    """Returns the distance of two boxes in pixels."""
    down = max(one.box[0] - other.box[2], other.box[0] - one.box[2], 0)
    across = max(one.box[1] - other.box[3], other.box[1] - one.box[3], 0)
    return float(np.hypot(down, across))
