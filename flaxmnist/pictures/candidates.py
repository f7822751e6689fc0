"""Measures how likely a connected mark is a digit."""

import dataclasses
import functools

import cv2
import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8

from flaxmnist.pictures.background import Light, marks

# Contrast of a mark, as multiples of the threshold that separated it.
MIN_RATIO, MAX_RATIO = 1.35, 3.2
# Larger marks, as a share of the picture, are not more likely digits.
MAX_SIZE = 0.5
# Width of the longest group of digits that touch, as a multiple of its height.
MAX_GROUP = 10
# Lowest share of the box of a frame, a sheet or a bar that its outline encloses.
_FULL = 0.88
# Least share of the variance of the contrast that lies between two classes which are
# clearly apart, paper and marks. A normal distribution, cut in two, has 0.64.
_SEPARATE = 0.85

Labels = Integer[np.ndarray, "height width"]
Mask = UInt8[np.ndarray, "height width"]


@dataclasses.dataclass(frozen=True)
class View:
    """A picture at one polarity, and an estimate of its ground.

    Attributes:
      light: from 0 to 1; of the inverted picture if the marks are light.
      ground: light of the ground.
      contrast: share of the ground's light that is missing.
      is_dark: whether the marks are darker than the ground.
    """

    light: Light
    ground: Light
    contrast: Light
    is_dark: bool

    @functools.cached_property
    def highest(self) -> float:
        """Highest contrast."""
        return float(self.contrast.max())

    @functools.cached_property
    def paper(self) -> tuple[float, float]:
        """Median and standard deviation of the contrast of the paper."""
        step = max(1, max(self.contrast.shape) // 128)
        sample = _paper(self.contrast[::step, ::step])
        middle = float(np.median(sample))
        return middle, 1.4826 * float(np.median(abs(sample - middle)))


def _paper(contrast: Light) -> Float[np.ndarray, "..."]:
    """Returns the contrast of the paper, without marks that are clearly apart.

    If they are not, returns that of all pixels; the marks must then be few. The classes
    are those of Otsu (1979, "A Threshold Selection Method from Gray-Level Histograms").
    """
    pixels = cv2.convertScaleAbs(contrast, alpha=255)
    _, mask = cv2.threshold(pixels, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    share = float(mask.mean())
    if not 0 < share < 1:
        return contrast
    apart = pixels[mask > 0].mean() - pixels[mask == 0].mean()
    if share * (1 - share) * apart**2 < _SEPARATE * pixels.var():
        return contrast
    return contrast[mask == 0]


@dataclasses.dataclass(frozen=True)
class Mark:
    """A connected mark.

    Attributes:
      label: its number in an array of labels.
      box: top, left, bottom, right in pixels.
      area: in pixels.
      contrast: to the ground, from 0 to 1.
      threshold: that separated the mark from the ground.
      contact: share of its outline that lies on the border of the picture.
      is_line: whether it is a long line, such as an underline.
      score: how likely it is a digit; 0 for a mark that is not.
    """

    label: int
    box: tuple[int, int, int, int]
    area: int
    contrast: float
    threshold: float
    contact: float = 0.0
    is_line: bool = False
    score: float = 0.0

    @property
    def height(self) -> int:
        """In pixels."""
        return self.box[2] - self.box[0]

    @property
    def width(self) -> int:
        """In pixels."""
        return self.box[3] - self.box[1]

    def overlap(self, other: "Mark") -> float:
        """Returns the intersection of both boxes as a share of their union."""
        top, left = map(max, self.box[:2], other.box[:2])
        bottom, right = map(min, self.box[2:], other.box[2:])
        shared = max(0, bottom - top) * max(0, right - left)
        areas = self.height * self.width + other.height * other.width
        return shared / (areas - shared)

    def around(self, room: int) -> tuple[slice, slice]:
        """Returns the rows and the columns of the box and of `room` pixels around."""
        top, left, bottom, right = self.box
        return (
            slice(max(0, top - room), bottom + room),
            slice(max(0, left - room), right + room),
        )


def candidates(
    view: View,
    labels: Labels,
    stats: np.ndarray,
    threshold: float,
    lowest: float,
    most: int,
) -> list[Mark]:
    """Returns the marks that may be digits, with the highest score that each may have.

    Args:
      view: the picture.
      labels: number of the mark at each pixel; 0 for none.
      stats: of the marks, as OpenCV returns them.
      threshold: that separated the marks from the ground.
      lowest: contrast below which a mark is left out.
      most: number of marks that are considered, those of low contrast included.
    """
    count, on = len(stats), np.flatnonzero(labels > 0)
    values, names = view.contrast.ravel()[on], labels.ravel()[on]
    first = np.bincount(names, values, count)
    second = np.bincount(names, values * values, count)
    contrast = second / np.maximum(first, 1e-9)
    ratio = contrast / threshold
    good = (ratio >= MIN_RATIO) & (ratio <= MAX_RATIO)
    good &= stats[:, cv2.CC_STAT_AREA] >= 6
    good[0] = False
    chosen = np.flatnonzero(good)
    extent = np.maximum(stats[:, cv2.CC_STAT_WIDTH], stats[:, cv2.CC_STAT_HEIGHT])
    weight = contrast * extent**0.5
    chosen = chosen[np.argsort(-weight[chosen])[:most]]
    found = []
    for label in chosen[contrast[chosen] >= lowest]:
        left, top, wide, tall, area = map(int, stats[label])
        box = (top, left, top + tall, left + wide)
        mark = Mark(int(label), box, area, float(contrast[label]), threshold)
        score = _score(mark, 1.0, 1.0, labels.shape)
        found.append(dataclasses.replace(mark, score=score))
    return found


def measured(mark: Mark, view: View, labels: Labels) -> Mark:
    """Returns a candidate with its score, which is 0 if it is not a digit."""
    reach = max(2, round(0.08 * max(mark.height, mark.width)))
    place = mark.around(reach)
    mask = (labels[place] == mark.label).astype(np.uint8)
    inner = cv2.erode(mask, np.ones((3, 3), np.uint8), borderValue=1)
    outline = (mask > 0) & (inner == 0)
    below = view.ground[place]
    # Light of the ground around the mark.
    level = (1 - 0.4 * mark.contrast) * float(np.median(below[mask > 0]))
    if not outline.any() or _is_frame(mark, mask, view.light[place] >= level, labels):
        return dataclasses.replace(mark, score=0.0)
    near = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    missing = marks(cv2.dilate(view.light[place], near)[outline], below[outline])
    support = float((missing <= 0.4 * mark.contrast).mean())
    # The share of the surroundings that is as light as the ground.
    room = round(0.6 * max(mark.height, mark.width))
    place = mark.around(room)
    step = max(1, (mark.height + 2 * room) // 64)
    around = view.light[place][::step, ::step]
    beside = labels[place][::step, ::step] != mark.label
    share = float((around[beside] >= level).mean()) if beside.any() else 0.0
    contact = _border_pixels(mark, labels) / (int(outline.sum()) + 1)
    mark = dataclasses.replace(mark, contact=contact, is_line=_is_line(mark, mask))
    score = _score(mark, support, share, labels.shape)
    return dataclasses.replace(mark, score=score)


def _border_pixels(mark: Mark, labels: Labels) -> int:
    """Returns the number of pixels of a mark that lie on the border of the picture."""
    top, left, bottom, right = mark.box
    height, width = labels.shape
    lines = (
        (np.s_[0], top == 0),
        (np.s_[-1], bottom == height),
        (np.s_[:, 0], left == 0),
        (np.s_[:, -1], right == width),
    )
    return sum(
        int((labels[line] == mark.label).sum()) for line, touches in lines if touches
    )


def _is_frame(
    mark: Mark, mask: Mask, is_ground: Bool[np.ndarray, "height width"], labels: Labels
) -> bool:
    """Returns whether a mark is a frame, a sheet or a bar rather than a digit.

    A 0 or an 8 may be a box, too. Its loops are boxes and have nothing inside.

    Args:
      mark: the mark.
      mask: its pixels, and a margin.
      is_ground: the pixels there that are as light as the ground.
      labels: of the whole picture.
    """
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    outer = max(outlines, key=cv2.contourArea)
    # A long box, also one at an angle, may be a 1.
    sides = sorted(cv2.minAreaRect(outer)[1])
    if sides[1] > 2.2 * sides[0] or not _is_box(outer):
        return False
    height, width = labels.shape
    if mark.height > 0.8 * height and mark.width > 0.8 * width:
        return True
    hollow = cv2.drawContours(np.zeros_like(mask), [outer], -1, 1, cv2.FILLED)
    enclosed = int(hollow.sum())
    hollow[mask > 0] = 0
    # The soft edge of a stroke is darker than the ground.
    hollow = cv2.erode(hollow, np.ones((3, 3), np.uint8))
    if hollow.sum() < 0.1 * enclosed or (~is_ground & (hollow > 0)).mean() > 0.01:
        return True
    loops, _ = cv2.findContours(hollow, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    large = [loop for loop in loops if cv2.contourArea(loop) > 0.02 * enclosed]
    return not all(_is_box(loop, 0.75) for loop in large)


def _is_box(outline: np.ndarray, full: float = _FULL) -> bool:
    _, (wide, tall), _ = cv2.minAreaRect(outline)
    return cv2.contourArea(outline) > full * wide * tall


def _is_line(mark: Mark, mask: Mask) -> bool:
    """Returns whether a wide mark is one stroke rather than digits that touch."""
    if mark.width <= 3 * mark.height:
        return False
    columns = mask[:, mask.any(axis=0)]
    below, above = columns.argmax(axis=0), columns[::-1].argmax(axis=0)
    spans = len(columns) - below - above
    return mark.width > MAX_GROUP * mark.height or mark.area > 0.85 * spans.sum()


def highest_score(threshold: float) -> float:
    """Returns the highest score that a mark may have at a threshold."""
    # `ratio * _fit(ratio)` grows up to a ratio of 3.3.
    return float(MAX_RATIO * threshold * _fit(MAX_RATIO) * MAX_SIZE**0.5)


def _fit(ratio: float) -> float:
    """Returns how well a threshold fits a mark: best at half of its contrast.

    Args:
      ratio: contrast of the mark, as a multiple of the threshold.
    """
    return float(np.exp(-(np.log(ratio / 2) ** 2)))


def _score(mark: Mark, support: float, share: float, shape: tuple[int, ...]) -> float:
    """Returns how likely a mark is a digit.

    Args:
      mark: the mark.
      support: share of its outline at which the picture reaches the ground.
      share: share of its surroundings that is as light as the ground.
      shape: of the picture.
    """
    if support < 0.5:
        return 0.0
    # A line, or a digit that touches one, is not more likely because it is long.
    size = min(max(mark.height, mark.width), 1.5 * mark.height) / max(shape)
    score = mark.contrast * support**4 * share * min(size, MAX_SIZE) ** 0.5
    score *= _fit(mark.contrast / mark.threshold)
    if mark.is_line:
        score *= 0.1
    if mark.contact:
        # A digit that is cropped tight reaches from border to border.
        is_tight = mark.height >= 0.95 * shape[0] and mark.width >= 0.95 * shape[1]
        factor, allowed = (0.9, 0.3) if is_tight else (0.7, 0.05)
        score *= factor * np.exp(-6 * max(0, mark.contact - allowed))
    return float(score)
