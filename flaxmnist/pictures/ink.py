"""Finds the ink of a drawing or of writing, without paper, rules and desk.

The ink is first found in a small copy of the picture, at several sizes of the kernel
that estimates the ground, in both polarities and at several thresholds. The best
finding is then measured again around the ink only, in more pixels if it is small.
"""

import dataclasses
from collections.abc import Collection

import cv2
import numpy as np
from jaxtyping import Float

from flaxmnist.pictures.background import marks, smooth
from flaxmnist.pictures.components import Finding, search
from flaxmnist.pictures.files import Gray, Lightness, Picture, as_gray, rereadable

# The steps of `find_ink`, in this order.
STEPS = ("light", "invert")
# Longer side in pixels of the picture in which the ink is searched, and of `strength`.
SEARCH, REFINED = 1000, 1536
# Height of a digit in `strength`, in pixels, if as many were read.
DIGIT = 160
# Height of a digit in a JPEG that was decoded smaller, in pixels, below which the file
# is read again at its full size.
_FEW = 48


@dataclasses.dataclass(frozen=True)
class Ink:
    """The ink of a part of a picture.

    Pixel `(y, x)` of `strength` is pixel `(top + y / scale, left + x / scale)` of the
    picture, turned upright.

    Attributes:
      strength: 0 for paper to 1 for ink.
      top: first row of the part, in pixels of the picture.
      left: first column of the part, in pixels of the picture.
      scale: side of a pixel of the picture, in pixels of `strength`.
      size: width and height of the picture.
      warnings: reasons to doubt the finding.
    """

    strength: Float[np.ndarray, "height width"]
    top: float
    left: float
    scale: float
    size: tuple[int, int]
    warnings: tuple[str, ...] = ()


def find_ink(picture: Picture, steps: Collection[str] = STEPS) -> Ink | None:
    """Returns the ink in a picture; None if nothing is found.

    Args:
      picture: see :func:`flaxmnist.pictures.prepare.prepare`.
      steps: ``light`` removes uneven lighting of the paper, ``invert`` accepts dark ink
        on light paper, too.

    Raises:
      UserError: `picture` is not a picture.
    """
    picture = rereadable(picture)
    light = as_gray(picture, SEARCH)
    small, scale = _shrunk(light.pixels, SEARCH)
    finding = search(small, steps)
    if finding is None:
        return None
    # A small digit needs the resolution that was left out in reading the file.
    if light.scale < 1 and finding.height / scale < _FEW:
        scale *= light.scale
        light = as_gray(picture)
    return _refined(light, finding, scale)


def _shrunk(gray: Gray, side: int) -> tuple[Gray, float]:
    """Returns a picture whose longer side is at most `side`, and its scale."""
    scale = min(1.0, side / max(gray.shape))
    if scale == 1:
        return gray, scale
    size = tuple(max(1, round(scale * extent)) for extent in gray.shape[::-1])
    return cv2.resize(gray, size, interpolation=cv2.INTER_AREA), scale


def _refined(picture: Lightness, finding: Finding, scale: float) -> Ink:
    """Returns the ink of a finding at a higher resolution.

    Args:
      picture: the picture.
      finding: made in a copy of its pixels at scale `scale`.
      scale: of the copy.
    """
    top, left, bottom, right = (side / scale for side in finding.box)
    margin = 0.15 * max(bottom - top, right - left) + 4 / scale
    rows = slice(max(0, int(top - margin)), int(np.ceil(bottom + margin)))
    columns = slice(max(0, int(left - margin)), int(np.ceil(right + margin)))
    part = picture.pixels[rows, columns]
    zoom = min(
        1.0,
        max(DIGIT * scale / finding.height, scale),
        max(REFINED / max(part.shape), scale),
    )
    size = tuple(max(1, round(zoom * side)) for side in part.shape[::-1])
    light = smooth(cv2.resize(part, size, interpolation=cv2.INTER_AREA))
    matrix = np.array(
        [
            [scale / zoom, 0, columns.start * scale],
            [0, scale / zoom, rows.start * scale],
        ]
    )

    def placed(image, interpolation):
        return cv2.warpAffine(
            image,
            matrix,
            size,
            flags=interpolation | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )

    ground = placed(finding.ground, cv2.INTER_LINEAR)
    light = light if finding.is_dark else 1 - light
    mark = marks(light, ground)
    mask = placed(finding.mask.astype(np.uint8), cv2.INTER_NEAREST)
    room = 2 * max(1, round(2 * zoom / scale)) + 1
    mask = cv2.dilate(mask, np.ones((room, room), np.uint8))
    inside = mark[mask > 0]
    strong = inside[inside > finding.level / 2]
    if strong.size:
        level = float(np.percentile(strong, 60))
    else:  # Smoothing left a dotted mark with less than half of its contrast.
        level = float(inside.max(initial=1e-3))
    floor = min(max(0.1 * level, finding.noise), 0.5 * level)
    strength = np.clip((mark - floor) / (level - floor), 0, 1)
    return Ink(
        np.where(mask > 0, strength, 0).astype(np.float32),
        rows.start / picture.scale,
        columns.start / picture.scale,
        zoom * picture.scale,
        picture.size,
        finding.warnings,
    )
