"""Turns a picture of a digit into an image like those of MNIST.

MNIST's digits were scaled into 20 × 20 keeping their proportions, anti-aliased, and
placed in 28 × 28 with their centre of mass in the middle, white on black (LeCun et al.,
1998, "Gradient-Based Learning Applied to Document Recognition", section III-A). Other
pictures are photographs of dark ink on unevenly lit paper, off-centre, rotated by EXIF
orientation, or thin lines on a transparent background.
"""

import dataclasses
import math
from collections.abc import Collection

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.morphology import skeletonize

from flaxmnist.inference.pictures import SIDE, Gray, Picture, as_gray

# The steps of `prepare`, in this order.
STEPS = ("light", "invert", "clean", "crop", "thicken", "center")
# Pixels in MNIST: side of the digit, side of the image, width of a stroke.
BOX, SIZE, STROKE = 20, 28, 2.4
# Lowest contrast, as a share of the range from black to white, and as a multiple of
# the noise around the digit.
LEAST_CONTRAST, LEAST_SIGNAL = 0.06, 4.0


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A picture that is ready for the model.

    Attributes:
      image: uint8 `[height, width]`, or `[height, width, channels]` if there are
        several channels.
      warnings: reasons to doubt a prediction, such as ``"nothing is drawn"``.
      is_empty: whether nothing is drawn.
    """

    image: UInt8[np.ndarray, "height width *channels"]
    warnings: tuple[str, ...] = ()
    is_empty: bool = False


def prepare(picture: Picture, steps: Collection[str] = STEPS) -> Prepared:
    """Returns a picture as uint8 `[28, 28]`, white on black, like MNIST's images.

    The steps: ``light`` removes uneven lighting of the paper, ``invert`` makes dark
    digits light, ``clean`` removes specks and marks that touch the border, ``crop``
    scales the digit into 20 × 20, ``thicken`` widens thin strokes to the width of
    MNIST's, and ``center`` moves the centre of mass to the middle.

    Args:
      picture: a path, an open file, the bytes of a file, a Pillow image, or an array:
        `[height, width]` or `[height, width, 1 to 4]`, bool, unsigned integers up to
        the maximum of their dtype, or floating point in [0, 1].
      steps: the steps to take; leave some out to measure their effect.

    Raises:
      UserError: `picture` is not a picture.
    """
    gray = _shrink(as_gray(picture))
    ink = _subtract_paper(gray, "light" in steps)
    # A blur of one or two pixels reduces the grain of a photograph.
    ink = ndimage.gaussian_filter(ink, max(ink.shape) / 170)
    if np.ptp(ink) < LEAST_CONTRAST:
        return _nothing()
    if "invert" in steps and _is_dark_on_light(ink):
        ink = -ink
    stroke = ink > threshold_otsu(ink)
    level = np.percentile(ink[stroke], 75)
    paper = ink[~ndimage.binary_dilation(stroke, iterations=3)]
    noise = (paper if paper.size > ink.size / 10 else ink[~stroke]).std()
    if level < max(LEAST_CONTRAST, LEAST_SIGNAL * noise):
        return _nothing()
    floor = min(max(0.1 * level, 3 * noise), 0.5 * level)
    ink = np.clip((ink - floor) / (level - floor), 0, 1)

    warnings = []
    if "clean" in steps:
        ink, digits = _clean(ink)
        if digits > 1:
            warnings.append(f"{digits} digits, taken for one")
    if "crop" in steps:
        ink = _crop(ink)
    side, room = max(ink.shape), BOX if "crop" in steps else SIZE
    if "thicken" in steps:
        ink = _thicken(ink, room / side)
        ink = _crop(ink) if "crop" in steps else ink
    small = _resize(ink, room / max(ink.shape))
    small = np.clip(small / max(small.max(), 1e-6), 0, 1)
    image = _place(small, "center" in steps)
    return Prepared(np.round(image * 255).astype(np.uint8), tuple(warnings))


def _nothing() -> Prepared:
    image = np.zeros((SIZE, SIZE), np.uint8)
    return Prepared(image, ("nothing is drawn",), is_empty=True)


def _resize(gray: Gray, scale: float) -> Gray:
    height, width = (max(1, round(side * scale)) for side in gray.shape)
    image = Image.fromarray(np.ascontiguousarray(gray, np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def _shrink(gray: Gray) -> Gray:
    return _resize(gray, min(1, SIDE / max(gray.shape)))


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


def _clean(ink: Gray) -> tuple[Gray, int]:
    """Removes specks and marks at the border; also returns the number of digits."""
    labels, count = ndimage.label(ink > 0.3, np.ones((3, 3)))
    if count == 0:
        return ink, 0
    sizes = ndimage.sum_labels(ink, labels, range(1, count + 1))
    boxes = ndimage.find_objects(labels)
    inside = np.array(
        [
            all(
                part.start > 0 and part.stop < side
                for part, side in zip(box, ink.shape, strict=True)
            )
            for box in boxes
        ]
    )
    kept = sizes >= 0.03 * sizes.max()
    if (kept & inside).any() and sizes[inside].max() >= 0.2 * sizes.max():
        kept &= inside
    names = np.flatnonzero(kept) + 1
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


def _crop(ink: Gray) -> Gray:
    rows, columns = (np.flatnonzero((ink > 0.05).any(axis=axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _thicken(ink: Gray, scale: float) -> Gray:
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


def _place(small: Gray, by_mass: bool) -> Gray:
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
