"""Finds the digits of numbers, in reading order, in an image of ink.

Connected marks of ink are put in lines, and broken parts of a digit are joined. Digits
that touch remain one glyph; see :mod:`flaxmnist.pictures.touching`.
"""

import dataclasses
import functools
import math

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image
from scipy import ndimage
from scipy.sparse import csgraph

from flaxmnist.pictures.lines import (
    DIGIT,
    INK,
    Marks,
    Strength,
    angle_of,
    find_lines,
    find_marks,
)

Affine = Float[np.ndarray, "2 3"]
# Left, top, right and bottom in pixels; right and bottom are the first ones outside.
Box = tuple[int, int, int, int]

# More marks than a page of numbers has.
MAX_MARKS = 1_500
# Shares of the height of a line: a gap within a digit, and a gap between groups.
JOIN, GROUP = 0.06, 0.75
# Width of the widest edge of a sheet, as a share of its length.
EDGE = 0.2
# Lowest digit, in pixels, and the height above which the image is reduced.
MIN_HEIGHT, MAX_HEIGHT = 8, 96
# Lines at a smaller angle, in degrees, are not turned.
LEVEL = 3.0


@dataclasses.dataclass(frozen=True, eq=False)
class Glyph:
    """The ink of one digit, or of several that touch or nearly touch.

    Attributes:
      strength: the ink, upright, without that of its neighbours.
      line: index of the line, from the top.
      starts_group: whether a wide gap or another mark, such as a dash, lies before it.
      line_height: typical height of the digits in the line, in pixels of `strength`.
      to_image: maps (x, y, 1) in `strength` to (x, y) in the segmented image.
    """

    strength: Strength
    line: int
    starts_group: bool
    line_height: float
    to_image: Affine

    @functools.cached_property
    def box(self) -> Box:
        """The place in the segmented image."""
        y, x = np.nonzero(self.strength > INK)
        places = self.to_image @ np.stack([x + 0.5, y + 0.5, np.ones(len(x))])
        half = math.hypot(*self.to_image[:, 0]) / 2
        left, top = np.floor(places.min(axis=1) - half + 1e-3).astype(int)
        right, bottom = np.ceil(places.max(axis=1) + half - 1e-3).astype(int)
        return int(left), int(top), int(right), int(bottom)

    def part(self, chosen: Bool[np.ndarray, "height width"]) -> "Glyph | None":
        """Returns the chosen pixels as a glyph; None if there is no ink."""
        strength = np.where(chosen, self.strength, 0)
        rows, columns = (
            np.flatnonzero((strength > INK).any(axis=axis)) for axis in (1, 0)
        )
        if not len(rows):
            return None
        # One pixel around the ink keeps its soft edge.
        top, left = max(rows[0] - 1, 0), max(columns[0] - 1, 0)
        return dataclasses.replace(
            self,
            # A copy: a view would hold the memory of the whole glyph.
            strength=strength[top : rows[-1] + 2, left : columns[-1] + 2].copy(),
            to_image=_moved(self.to_image, left, top),
        )


def segment(strength: Strength) -> list[Glyph]:
    """Returns the glyphs of an image in reading order.

    The list is empty if nothing looks like a digit, or if the image has more marks than
    a page of numbers.

    Args:
      strength: how much ink each pixel has, float32 from 0 to 1.
    """
    strength = _without_edges(strength)
    labels, marks = find_marks(strength)
    to_image = np.eye(2, 3)
    if not _are_readable(marks):
        return []
    if (factor := math.ceil(marks.typical_height / MAX_HEIGHT)) > 1:
        strength = np.asarray(_as_image(strength).reduce(factor))
        to_image = to_image * factor
    if abs(angle := angle_of(marks)) > LEVEL:
        strength, level = _level(strength, angle)
        to_image = factor * level
    if factor > 1 or abs(angle) > LEVEL:
        labels, marks = find_marks(strength)
        if not _are_readable(marks):
            return []
    glyphs = []
    for number, line in enumerate(find_lines(marks)):
        glyphs += _glyphs(strength, labels, line, number, to_image)
    return glyphs


def _without_edges(strength: Strength) -> Strength:
    """Removes thin marks at the border: edges of a sheet or of a desk."""
    labels, marks = find_marks(strength)
    height, width = strength.shape
    at_border = (marks.left == 0) | (marks.top == 0)
    at_border |= (marks.right == width) | (marks.bottom == height)
    sides = np.sort([marks.width, marks.height], axis=0)
    is_edge = at_border & (sides[0] < EDGE * sides[1])
    if not is_edge.any() or is_edge.all():
        return strength
    edges = np.isin(labels, marks.label[is_edge])
    return np.where(ndimage.binary_dilation(edges, iterations=2), 0, strength)


def _are_readable(marks: Marks) -> bool:
    return 0 < len(marks) <= MAX_MARKS and marks.typical_height >= MIN_HEIGHT


def _as_image(strength: Strength) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(strength, np.float32))


def _moved(to_image: Affine, left: int, top: int) -> Affine:
    """Returns the map of a cutting whose origin is at `left` and `top`."""
    linear = to_image[:, :2]
    return np.column_stack([linear, to_image[:, 2] + linear @ [left, top]])


def _level(strength: Strength, angle: float) -> tuple[Strength, Affine]:
    """Returns the image with level lines, and the map back."""
    turn = math.radians(angle)
    linear = np.array(
        [[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]
    )
    size = np.array(strength.shape[::-1])
    new = np.ceil(abs(linear) @ size).astype(int)
    back = np.column_stack([linear, size / 2 - linear @ new / 2])
    image = _as_image(strength).transform(
        (int(new[0]), int(new[1])),
        Image.Transform.AFFINE,
        tuple(back.ravel()),
        Image.Resampling.BICUBIC,
    )
    return np.clip(np.asarray(image), 0, 1), back


def _glyphs(
    strength: Strength,
    labels: np.ndarray,
    line: Marks,
    number: int,
    to_image: Affine,
) -> list[Glyph]:
    """Returns the glyphs of a line from left to right."""
    tall = line.height[line.height >= DIGIT * line.typical_height]
    height = float(np.median(tall))
    glyphs: list[Glyph] = []
    end, separated = -math.inf, False
    for cluster in _clusters(line, height):
        left, top = cluster.left.min(), cluster.top.min()
        right, bottom = cluster.right.max(), cluster.bottom.max()
        if bottom - top < DIGIT * height:
            separated = True
            continue
        # Two pixels around the ink keep its soft edge.
        left, top = max(left - 2, 0), max(top - 2, 0)
        region = labels[top : bottom + 2, left : right + 2]
        own = np.isin(region, cluster.label)
        own = ndimage.binary_dilation(own, iterations=2) & (own | (region == 0))
        cut = strength[top : bottom + 2, left : right + 2]
        gap = cluster.left.min() - end
        glyphs.append(
            Glyph(
                strength=np.where(own, cut, 0),
                line=number,
                starts_group=bool(glyphs and (separated or gap > GROUP * height)),
                line_height=height,
                to_image=_moved(to_image, left, top),
            )
        )
        end, separated = cluster.right.max(), False
    return glyphs


def _clusters(line: Marks, height: float) -> list[Marks]:
    """Joins marks that may belong to one digit."""

    def gaps(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        return np.maximum(low[None], low[:, None]) - np.minimum(
            high[None], high[:, None]
        )

    across, down = gaps(line.left, line.right), gaps(line.top, line.bottom)
    narrower = np.minimum(line.width[None], line.width[:, None])
    is_small = line.height < DIGIT * height
    any_small = is_small[None] | is_small[:, None]
    near = across < JOIN * height
    # Specks and dashes beside a digit are not parts of it; the bar of a 5 is.
    above = (across < -0.5 * narrower) & (down < 0.25 * height)
    beside = near & (down < 0)
    joined = np.where(any_small, above | beside, near)
    _, names = csgraph.connected_components(joined, directed=False)
    clusters = [line[names == name] for name in np.unique(names)]
    return sorted(clusters, key=lambda cluster: int(cluster.left.min()))
