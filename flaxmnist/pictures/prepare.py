"""Turns a picture of a digit into an image like those of MNIST.

Pictures are photographs of dark ink on unevenly lit paper, off-centre, rotated by EXIF
orientation, or thin lines on a transparent background.
"""

import dataclasses
from collections.abc import Collection

import numpy as np
from jaxtyping import UInt8
from scipy import ndimage

from flaxmnist.pictures.files import Gray, Picture
from flaxmnist.pictures.ink import Ink, find_ink
from flaxmnist.pictures.normalize import SIZE, normalize

# The steps of `prepare`, in this order.
STEPS = ("light", "invert", "clean", "crop", "thicken", "center")
NOTHING_FOUND = "no digit found"


@dataclasses.dataclass(frozen=True)
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
            warnings.append(
                f"{digits} digits, taken for one; use --read or read_digits"
            )
    return Prepared(normalize(strength, steps), tuple(warnings))


def _clean(ink: Gray) -> tuple[Gray, int]:
    """Removes specks; also returns the number of digits."""
    labels, count = ndimage.label(ink > 0.3, np.ones((3, 3)))
    if count == 0:
        return ink, 0
    sizes = ndimage.sum_labels(ink, labels, range(1, count + 1))
    boxes = ndimage.find_objects(labels)
    names = np.flatnonzero(sizes >= 0.03 * sizes.max()) + 1
    around = ndimage.binary_dilation(np.isin(labels, names), iterations=2)
    heights = [boxes[name - 1][0].stop - boxes[name - 1][0].start for name in names]
    tall = [
        boxes[name - 1][1]
        for name, height in zip(names, heights, strict=True)
        if height > 0.6 * max(heights)
    ]
    # Count parts side by side; parts above each other belong to one digit.
    digits, right = 0, -1
    for columns in sorted(tall, key=lambda columns: columns.start):
        digits += columns.start >= right
        right = max(right, columns.stop)
    return np.where(around, ink, 0), digits
