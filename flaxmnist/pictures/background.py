"""Estimates the ground of a picture, unevenly lit, at several scales.

A grayscale closing removes dark marks that are narrower than its kernel and keeps
everything wider, also the edge of a shadow or of a desk (Serra, 1982, "Image Analysis
and Mathematical Morphology", chapter XII). Ink darkens paper by a share of its light,
so the mark is divided by the closing, not only subtracted from it.
"""

import cv2
import numpy as np
from jaxtyping import Float

from flaxmnist.pictures.files import Gray

# Light is divided by at least this share of white: a quotient by black is noise.
MIN_LIGHT = 0.25
# Kernels wider than this many pixels work on a reduced picture.
_WIDE = 256
# Standard deviation of the noise that remains, as a share of white.
_MAX_NOISE = 0.02

Light = Float[np.ndarray, "height width"]


def smooth(gray: Gray) -> Light:
    """Returns a picture from 0 to 1, blurred as far as its noise requires."""
    light = gray.astype(np.float32) / 255
    if min(light.shape) < 3:
        return light
    # Standard deviation of independent noise, by Immerkær, 1996, "Fast Noise Variance
    # Estimation"; the median ignores edges.
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    noise = np.median(abs(cv2.filter2D(light, -1, kernel)[::3, ::3])) / (6 * 0.6745)
    # A Gaussian of width w divides the noise by 2 √π w.
    width = noise / _MAX_NOISE / (2 * np.sqrt(np.pi))
    return cv2.GaussianBlur(light, (0, 0), width) if width > 0.3 else light


def ground_of(light: Light, size: int) -> Light:
    """Returns the ground below dark marks.

    Args:
      light: a picture from 0 to 1.
      size: side of the kernel in pixels; wider marks belong to the ground.
    """
    # A wide kernel needs no fine picture.
    factor = 4 if size > _WIDE else 1
    height, width = light.shape
    small = light
    if factor > 1:
        shape = (max(1, width // factor), max(1, height // factor))
        small = cv2.resize(light, shape, interpolation=cv2.INTER_AREA)
    # Bytes are several times faster than floating point.
    pixels = cv2.convertScaleAbs(small, alpha=255)
    side = size // factor | 1
    closed = _closed(pixels, side)
    if factor > 1:
        closed = cv2.resize(closed, (width, height), interpolation=cv2.INTER_LINEAR)
    ground = np.divide(closed, 255, dtype=np.float32)
    return np.maximum(ground, light, out=ground)


def _closed(pixels: Gray, side: int) -> Gray:
    """Returns the closing by a square of an odd side.

    Each pass doubles the width over which an extreme is taken. OpenCV takes as many as
    the square has rows.
    """
    edge = (side // 2, side // 2), (0, 0)
    for extreme, neutral in ((np.maximum, 0), (np.minimum, 255)):
        for _ in ("rows", "columns"):
            pixels, width = np.pad(pixels, edge, constant_values=neutral), 1
            while width < side:
                step = min(width, side - width)
                pixels = extreme(pixels[:-step], pixels[step:])
                width += step
            pixels = pixels.T
    return pixels


def marks(light: Light, ground: Light) -> Light:
    """Returns the share of the ground's light that is missing, 0 to 1."""
    missing = ground - light
    missing /= np.maximum(ground, MIN_LIGHT)
    return missing
