"""Turns a picture of a digit into an image like those of MNIST.

Pictures are photographs of dark ink on unevenly lit paper, off-centre, rotated by EXIF
orientation, or thin lines on a transparent background.
"""

import dataclasses
from collections.abc import Collection

import cv2
import numpy as np
from jaxtyping import UInt8

from flaxmnist.pictures.files import Picture
from flaxmnist.pictures.ink import Ink, find_ink
from flaxmnist.pictures.lines import Strength
from flaxmnist.pictures.normalize import SIZE, normalize
from flaxmnist.pictures.rules import connected

# The steps of `prepare`, in this order.
STEPS = ("light", "invert", "clean", "crop", "thicken", "center")
NOTHING_FOUND = "no digit found"
SEVERAL_FOUND = "digits, taken for one"


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """A picture that is ready for the model.

    Attributes:
      image: uint8 `[height, width]`, or `[height, width, channels]` if there are
        several channels.
      warnings: reasons to doubt a prediction, such as ``"no digit found"``.
      is_empty: whether no digit is found.
    """

    image: UInt8[np.ndarray, "height width *channels"]
    warnings: tuple[str, ...] = ()
    is_empty: bool = False


def prepare(picture: Picture, steps: Collection[str] = STEPS) -> Prepared:
    """Returns a picture as uint8 `[28, 28]`, white on black, like MNIST's images.

    The steps: ``light`` removes uneven lighting of the paper, ``invert`` makes dark
    digits light, ``clean`` removes specks, ``crop`` scales the digit into 20 × 20,
    ``thicken`` widens thin strokes to the width of MNIST's, and ``center`` moves the
    centre of mass to the middle.

    Args:
      picture: a path, an open file, the bytes of a file, a Pillow image, or an array:
        `[height, width]` or `[height, width, 1 to 4]`, bool, unsigned integers up to
        the maximum of their dtype, or floating point in [0, 1].
      steps: the steps to take; leave some out to measure their effect.

    Raises:
      UserError: `picture` is not a picture.
    """
    return prepare_ink(find_ink(picture, steps), steps)


def prepare_ink(ink: Ink | None, steps: Collection[str] = STEPS) -> Prepared:
    """Returns the ink of a picture, if there is any, as `prepare` does."""
    if ink is None:
        image = np.zeros((SIZE, SIZE), np.uint8)
        return Prepared(image, (NOTHING_FOUND,), is_empty=True)
    strength, warnings = ink.strength, list(ink.warnings)
    if "clean" in steps:
        strength, digits = _clean(strength)
        if digits > 1:
            warnings.append(f"{digits} {SEVERAL_FOUND}")
    return Prepared(normalize(strength, steps), tuple(warnings))


def _clean(ink: Strength) -> tuple[Strength, int]:
    """Removes specks; also returns the number of digits."""
    labels, stats = connected((ink > 0.3).astype(np.uint8))
    if len(stats) == 1:
        return ink, 0
    sizes = np.bincount(labels.ravel(), ink.ravel())
    sizes[0] = 0
    is_kept = sizes >= 0.03 * sizes.max()
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)
    around = cv2.dilate(is_kept[labels].astype(np.uint8), cross, iterations=2)
    kept = stats[is_kept]
    heights = kept[:, cv2.CC_STAT_HEIGHT]
    tall = kept[heights > 0.6 * heights.max()]
    # Count parts side by side; parts above each other belong to one digit.
    digits, right = 0, -1
    for left, width in sorted(tall[:, [cv2.CC_STAT_LEFT, cv2.CC_STAT_WIDTH]].tolist()):
        digits += left >= right
        right = max(right, left + width)
    return np.where(around > 0, ink, 0), digits
