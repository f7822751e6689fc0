"""Connected marks of ink, and the lines of text that they form."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float, Int
from scipy import ndimage

Strength = Float[np.ndarray, "height width"]
# Lowest strength of ink.
INK = 0.3
# Shares of the height of a line: the heights of a speck, of the smallest digit and of a
# mark that shows where the line is, and the width of the longest group that touches.
SPECK, DIGIT, TALL, LONGEST = 0.15, 0.5, 0.7, 10
# Share of their height that neighbours in a line have in common.
SHARED = 0.45


@dataclasses.dataclass(frozen=True, eq=False)
class Marks:
    """Connected marks of ink, as arrays `[count]`; places are in pixels."""

    label: np.ndarray
    left: np.ndarray
    top: np.ndarray
    right: np.ndarray
    bottom: np.ndarray

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, rows: np.ndarray) -> "Marks":
        fields = dataclasses.fields(self)
        return Marks(*(getattr(self, field.name)[rows] for field in fields))

    @property
    def width(self) -> np.ndarray:
        """The widths."""
        return self.right - self.left

    @property
    def height(self) -> np.ndarray:
        """The heights."""
        return self.bottom - self.top

    @property
    def x(self) -> np.ndarray:
        """The columns of the centres."""
        return (self.left + self.right) / 2

    @property
    def y(self) -> np.ndarray:
        """The rows of the centres."""
        return (self.top + self.bottom) / 2

    @property
    def typical_height(self) -> float:
        """The median of the heights, weighted by the area of a digit that high."""
        order = np.argsort(self.height)
        weight = np.cumsum(self.height[order].astype(float) ** 2)
        return float(self.height[order][np.searchsorted(weight, weight[-1] / 2)])


def find_marks(strength: Strength) -> tuple[Int[np.ndarray, "height width"], Marks]:
    """Returns the label of each pixel, and the marks except specks and rules."""
    labels, count = ndimage.label(strength > INK, np.ones((3, 3)))
    edges = [
        (columns.start, rows.start, columns.stop, rows.stop)
        for rows, columns in ndimage.find_objects(labels)
    ]
    marks = Marks(np.arange(1, count + 1), *np.reshape(edges, (count, 4)).T)
    if not count:
        return labels, marks
    typical = marks.typical_height
    size = np.maximum(marks.width, marks.height)
    is_rule = (marks.width > 2 * typical) & (marks.height < SPECK * marks.width)
    kept = (size >= max(SPECK * typical, 4)) & ~is_rule
    return labels, marks[kept & (marks.width <= LONGEST * typical)]


def angle_of(marks: Marks) -> float:
    """Returns the angle of the lines in degrees, positive if they descend."""
    height = marks.typical_height
    marks = marks[marks.height >= DIGIT * height]
    dx, dy = (each[None] - each[:, None] for each in (marks.x, marks.y))
    # Follow each mark to the next one on the right, if that is near.
    near = (dx > 0.2 * height) & (dx < 2 * height) & (abs(dy) < 0.6 * dx)
    distance = np.where(near, np.hypot(dx, 2 * dy), np.inf)
    after = np.where(near.any(axis=1), distance.argmin(axis=1), -1)
    first = np.flatnonzero(after >= 0)
    last = after[after[first]]
    # Three in a row at least: the heights of two digits may differ.
    first, last = first[last >= 0], last[last >= 0]
    if not len(first):
        return 0.0
    further = after[last]
    last = np.where(further >= 0, further, last)
    slopes = dy[first, last] / dx[first, last]
    return math.degrees(math.atan(np.median(slopes)))


def find_lines(marks: Marks) -> list[Marks]:
    """Returns the lines from top to bottom, their marks from left to right."""
    smallest = DIGIT * marks.typical_height
    found: list[Marks] = []
    # Tall marks show where the lines are. Other marks may be smaller text.
    while len(marks) and marks.height.max() >= smallest:
        tall = marks[marks.height >= TALL * marks.typical_height]
        rest = marks[~np.isin(marks.label, tall.label)]
        for line in _chains(tall):
            inside = _lies_in(rest, line)
            found.append(_joined(line, rest[inside]))
            rest = rest[~inside]
        marks = rest
    return sorted(found, key=lambda line: float(np.median(line.y)))


def _chains(marks: Marks) -> list[Marks]:
    """Returns marks that continue each other from left to right."""
    lines: list[list[int]] = []
    # Top and bottom of each line at its end so far.
    bands = np.zeros((0, 2))
    for row in np.argsort(marks.left, kind="stable"):
        mark = np.array([marks.top[row], marks.bottom[row]])
        shared = np.minimum(bands[:, 1], mark[1]) - np.maximum(bands[:, 0], mark[0])
        share = shared / np.minimum(np.ptp(bands, axis=1), np.ptp(mark))
        if not len(lines) or share.max() < SHARED:
            lines.append([row])
            bands = np.concatenate([bands, mark[None]])
        else:
            best = share.argmax()
            lines[best].append(row)
            bands[best] += 0.5 * (mark - bands[best])
    return [marks[np.array(rows)] for rows in lines]


def _lies_in(marks: Marks, line: Marks) -> np.ndarray:
    """Returns whether each mark lies between the top and the bottom of a line."""
    room = 0.2 * line.typical_height
    above, below = (np.interp(marks.x, line.x, y) for y in (line.top, line.bottom))
    return (marks.y > above - room) & (marks.y < below + room)


def _joined(line: Marks, others: Marks) -> Marks:
    """Returns the marks of both, from left to right."""
    pairs = zip(dataclasses.astuple(line), dataclasses.astuple(others), strict=True)
    both = Marks(*(np.concatenate(pair) for pair in pairs))
    return both[np.argsort(both.x, kind="stable")]
