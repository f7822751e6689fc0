"""Cuts glyphs whose digits may touch: more cuts than digits, of which to choose.

The method is heuristic over-segmentation (LeCun et al., 1998, "Gradient-Based Learning
Applied to Document Recognition", section VII-A); each cut is a path of least ink.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Float, Int
from scipy import ndimage

from flaxmnist.pictures.digits import Glyph
from flaxmnist.pictures.lines import INK, Strength

# Shares of the height of the line: of the narrowest glyph that is cut, of the distance
# between two searches for a path, and of the columns on both sides that a path may use.
NARROW, STEP, REACH = 0.7, 0.06, 0.22
# Most ink that a path may cross, as a share of the height of the line.
MAX_INK = 0.45
# Least ink between two cuts, as a share of the ink of a typical digit.
MIN_INK = 0.06
# The cost of a pixel without ink, and of a step to the side: paths are short.
_LENGTH, _ASIDE = 0.01, 0.02
# Most cuts per expected digit.
_DENSE = 5


@dataclasses.dataclass(frozen=True, eq=False)
class Cut:
    """A path from the top of a glyph to the bottom.

    Attributes:
      path: the first column to the right of the cut, in each row.
      ink: ink that the path crosses, as a share of the height of the line.
      hole: length of the path inside a loop of ink, as a share of that height.
    """

    path: Int[np.ndarray, " height"]
    ink: float
    hole: float


def find_cuts(glyph: Glyph) -> list[Cut]:
    """Returns where a glyph may be cut, from left to right."""
    strength, unit = glyph.strength, glyph.line_height
    width = strength.shape[1]
    if width < NARROW * unit:
        return []
    centers = np.arange(0.1 * unit, width - 0.1 * unit, max(1.0, STEP * unit))
    paths = _paths(strength, centers.round().astype(int), math.ceil(REACH * unit))
    rows = np.arange(len(strength))
    ink = strength[rows, paths].sum(axis=1) / unit
    # Paths that leave about the same ink on their left are variants of one cut.
    before = np.pad(np.cumsum(strength, axis=1), ((0, 0), (1, 0)))
    left = before[rows, paths].sum(axis=1)
    total = before[:, -1].sum()
    digits = max(1.0, width / (0.75 * unit))
    room = MIN_INK * total / digits
    chosen: list[int] = []
    for row in np.argsort(ink, kind="stable"):
        if len(chosen) >= _DENSE * digits or ink[row] > MAX_INK:
            break
        others = np.append(left[chosen], [0, total])
        if abs(others - left[row]).min() > room:
            chosen.append(int(row))
    chosen.sort(key=lambda row: float(left[row]))
    holes = (strength <= INK) ^ _outside(strength)
    return [
        Cut(
            path=paths[row],
            ink=float(ink[row]),
            hole=float(holes[rows, paths[row]].sum() / unit),
        )
        for row in chosen
    ]


def _outside(strength: Strength) -> np.ndarray:
    """Returns the pixels without ink that are connected with the border."""
    labels, _ = ndimage.label(np.pad(strength <= INK, 1, constant_values=True))
    return labels[1:-1, 1:-1] == labels[0, 0]


def _paths(
    strength: Strength, centers: Int[np.ndarray, " count"], reach: int
) -> Int[np.ndarray, "count height"]:
    """Returns the path of least ink near each of several columns."""
    height, width = strength.shape
    columns = centers[:, None] + np.arange(-reach, reach + 1)
    outside = (columns < 0) | (columns >= width)
    columns = columns.clip(0, width - 1)
    cost: Float[np.ndarray, "count columns"] = np.where(outside, 1e6, 0.0)
    steps = np.zeros((height, *columns.shape), np.int8)
    edge = np.full((len(centers), 1), 1e6)
    for row in range(height):
        if row:
            bordered = np.concatenate([edge, cost, edge], axis=1)
            came = np.stack([bordered[:, :-2] + _ASIDE, cost, bordered[:, 2:] + _ASIDE])
            steps[row] = came.argmin(axis=0) - 1
            cost = came.min(axis=0)
        cost = cost + strength[row, columns] + _LENGTH
    at = cost.argmin(axis=1)
    each = np.arange(len(centers))
    paths = np.empty((len(centers), height), int)
    for row in range(height - 1, -1, -1):
        paths[:, row] = columns[each, at]
        at = at + steps[row, each, at]
    return paths


def piece(glyph: Glyph, left: Cut | None, right: Cut | None) -> Glyph | None:
    """Returns the part of a glyph between two cuts; None if there is no ink.

    None as a cut is the border of the glyph.
    """
    columns = np.arange(glyph.strength.shape[1])[None]
    chosen = np.ones(glyph.strength.shape, bool)
    if left is not None:
        chosen &= columns >= left.path[:, None]
    if right is not None:
        chosen &= columns < right.path[:, None]
    return glyph.part(chosen)
