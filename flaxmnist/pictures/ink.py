"""Finds the ink in a picture: what is drawn or written, without the paper."""

import dataclasses
from collections.abc import Collection

import numpy as np
from jaxtyping import Float
from scipy import ndimage
from skimage.filters import threshold_otsu

from flaxmnist.pictures.files import SIDE, Gray, Picture, as_gray
from flaxmnist.pictures.normalize import resize

# The steps of `find_ink`, in this order.
STEPS = ("light", "invert")
# Lowest contrast, as a share of the range from black to white, and as a multiple of
# the noise around the digit.
LEAST_CONTRAST, LEAST_SIGNAL = 0.06, 4.0


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
      warnings: reasons to doubt the finding.
    """

    strength: Float[np.ndarray, "height width"]
    top: float = 0.0
    left: float = 0.0
    scale: float = 1.0
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
    gray = as_gray(picture)
    scale = min(1.0, SIDE / max(gray.shape))
    ink = _subtract_paper(resize(gray, scale), "light" in steps)
    # A blur of one or two pixels reduces the grain of a photograph.
    ink = ndimage.gaussian_filter(ink, max(ink.shape) / 170)
    if np.ptp(ink) < LEAST_CONTRAST:
        return None
    if "invert" in steps and _is_dark_on_light(ink):
        ink = -ink
    stroke = ink > threshold_otsu(ink)
    level = np.percentile(ink[stroke], 75)
    paper = ink[~ndimage.binary_dilation(stroke, iterations=3)]
    noise = (paper if paper.size > ink.size / 10 else ink[~stroke]).std()
    if level < max(LEAST_CONTRAST, LEAST_SIGNAL * noise):
        return None
    floor = min(max(0.1 * level, 3 * noise), 0.5 * level)
    return Ink(np.clip((ink - floor) / (level - floor), 0, 1), scale=scale)


def _subtract_paper(gray: Gray, uneven: bool) -> Gray:
    """Returns how much lighter each pixel is than the paper.

    The paper is a quadratic surface if `uneven`, else one tone. It is fitted to the
    frame of the picture, then repeatedly to all pixels near the fit.
    """
    y, x = (
        axis.ravel()
        for axis in np.mgrid[-1 : 1 : gray.shape[0] * 1j, -1 : 1 : gray.shape[1] * 1j]
    )
    terms = (
        [np.ones_like(x), x, y, x * x, x * y, y * y] if uneven else [np.ones_like(x)]
    )
    surface, values = np.stack(terms, axis=-1), gray.ravel()
    paper = np.maximum(abs(x), abs(y)) > 0.85
    for _ in range(4):
        # Normal equations: six unknowns, thousands of pixels.
        known = surface[paper]
        weights = np.linalg.pinv(known.T @ known) @ (known.T @ values[paper])
        rest = values - surface @ weights
        spread = 1.5 * np.median(abs(rest[paper]))
        paper = abs(rest) <= max(3 * spread, 0.02)
    # Ink darkens paper by a share of its light. Black paper has no light to share.
    rest /= np.clip(values - rest, 0.25, 1)
    return rest.reshape(gray.shape).astype(np.float32)


def _is_dark_on_light(ink: Gray) -> bool:
    """Returns whether most of the picture and of its frame is light."""
    light = ink > threshold_otsu(ink)
    frame = np.concatenate([light[0], light[-1], light[:, 0], light[:, -1]])
    return frame.mean() + light.mean() > 1
