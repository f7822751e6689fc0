"""Scales one digit to an image like those of MNIST.

MNIST's digits were scaled into 20 × 20 keeping their proportions, anti-aliased, and
placed in 28 × 28 with their centre of mass in the middle, white on black (LeCun et al.,
1998, "Gradient-Based Learning Applied to Document Recognition", section III-A).
"""

import math
from collections.abc import Collection

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from scipy import ndimage
from skimage.morphology import skeletonize

from flaxmnist.pictures.lines import Strength

# Pixels in MNIST: side of the digit, side of the image, width of a stroke.
BOX, SIZE, STROKE = 20, 28, 2.4
# The steps of `normalize`, in this order.
STEPS = ("crop", "thicken", "center")


def normalize(
    strength: Strength, steps: Collection[str] = STEPS
) -> UInt8[np.ndarray, "28 28"]:
    """Returns the ink of one digit as an image like those of MNIST.

    Args:
      strength: 0 for paper to 1 for ink; contains some ink.
      steps: ``crop`` scales the digit into 20 × 20, ``thicken`` widens thin strokes to
        the width of MNIST's, ``center`` moves the centre of mass to the middle.
    """
    if "crop" in steps:
        strength = _crop(strength)
    side, room = max(strength.shape), BOX if "crop" in steps else SIZE
    if "thicken" in steps:
        strength = _thicken(strength, room / side)
        strength = _crop(strength) if "crop" in steps else strength
    small = resize(strength, room / max(strength.shape))
    small = np.clip(small / max(small.max(), 1e-6), 0, 1)
    image = _place(small, "center" in steps)
    return np.round(image * 255).astype(np.uint8)


def resize(strength: Strength, scale: float) -> Strength:
    """Returns an image scaled in both directions."""
    height, width = (max(1, round(side * scale)) for side in strength.shape)
    image = Image.fromarray(np.ascontiguousarray(strength, np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def _crop(ink: Strength) -> Strength:
    rows, columns = (np.flatnonzero((ink > 0.05).any(axis=axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _thicken(ink: Strength, scale: float) -> Strength:
    """Widens strokes that would be thinner than MNIST's after scaling."""
    stroke = ink > 0.5
    length = skeletonize(stroke).sum()
    missing = STROKE / scale - stroke.sum() / max(length, 1)
    radius = missing / 2
    if radius < 0.5:
        return ink
    room = math.ceil(radius)
    distance = ndimage.distance_transform_edt(~np.pad(stroke, room))
    return np.clip(radius + 0.5 - distance, np.pad(ink, room), 1)


def _place(small: Strength, by_mass: bool) -> Strength:
    """Places an image in 28 × 28 by its centre of mass, or by its geometric centre."""
    centers, middle = [side / 2 for side in small.shape], SIZE / 2
    if by_mass and small.any():
        # In pixel indices: the mean centre of mass of MNIST is 14, not 13.5.
        centers = ndimage.center_of_mass(small)
    canvas = np.zeros((SIZE, SIZE), np.float32)
    top, left = (
        min(max(round(middle - center), 0), SIZE - side)
        for center, side in zip(centers, small.shape, strict=True)
    )
    canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
    return canvas
