"""Numbers of several digits, read from pictures."""

import dataclasses
import itertools
import os
from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from flaxmnist.core import mnist
from flaxmnist.core.calibration import UNCALIBRATED, Calibration
from flaxmnist.core.state import TrainState
from flaxmnist.errors import UserError
from flaxmnist.inference.division import divide
from flaxmnist.inference.predict import Prediction, trained
from flaxmnist.pictures.digits import Box, segment
from flaxmnist.pictures.files import Picture
from flaxmnist.pictures.ink import Ink, find_ink
from flaxmnist.pictures.prepare import NOTHING_FOUND

# A wider digit, as a share of the height of its line, gets a warning.
_WIDE = 1.25


@dataclasses.dataclass(frozen=True, eq=False)
class Digit:
    """A digit of a number.

    Attributes:
      box: left, top, right and bottom in the picture, turned upright, in pixels; right
        and bottom are the first ones outside.
      line: index of its line, from the top.
      starts_group: whether a wide gap or another mark, such as a dash, lies before it.
      is_divided: whether it touches another digit.
      is_wide: whether it is wide for a single digit.
      prediction: the probabilities, the most probable digit, and warnings.
    """

    box: Box
    line: int
    starts_group: bool
    is_divided: bool
    is_wide: bool
    prediction: Prediction

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons to doubt the digit."""
        wide = ("perhaps several digits",) if self.is_wide else ()
        divided = ("touches another digit",) if self.is_divided else ()
        return wide + divided + self.prediction.warnings


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Reading:
    """The digits in a picture.

    Attributes:
      digits: in reading order: lines from the top, each from left to right.
      warnings: reasons to doubt the reading.
      ink: the ink of the picture; None if no ink was found.
    """

    digits: tuple[Digit, ...]
    warnings: tuple[str, ...]
    ink: Ink | None

    def __repr__(self) -> str:
        return f"Reading({self.text!r})"

    @property
    def lines(self) -> tuple[tuple[Digit, ...], ...]:
        """The digits of each line."""
        groups = itertools.groupby(self.digits, key=lambda digit: digit.line)
        return tuple(tuple(digits) for _, digits in groups)

    @property
    def text(self) -> str:
        """A line of text per line of digits, with a space before each further group."""
        return "\n".join(text_of(line) for line in self.lines)

    def annotated(self) -> Image.Image:
        """Returns the ink, dark on white, with a box and a name at each digit.

        Boxes are red for digits with warnings, and green for the others.

        Raises:
          ValueError: nothing was found in the picture.
        """
        if self.ink is None:
            raise ValueError("nothing was found in the picture")
        gray = np.round(255 - 255 * self.ink.strength).astype(np.uint8)
        image = Image.fromarray(gray).convert("RGB")
        pen = ImageDraw.Draw(image)
        for digit in self.digits:
            x, y = self.ink.left, self.ink.top
            box = [
                (side - start) * self.ink.scale
                for side, start in zip(digit.box, (x, y, x, y), strict=True)
            ]
            color = "red" if digit.warnings else "green"
            pen.rectangle(box, outline=color)
            font = ImageFont.load_default(max(10, (box[3] - box[1]) / 4))
            pen.text(
                (box[0], box[1]), digit.prediction.label or "", fill=color, font=font
            )
        return image


def text_of(line: Iterable[Digit]) -> str:
    """Returns a line of digits, with a space before each further group."""
    return "".join(
        " " * digit.starts_group + (digit.prediction.label or "") for digit in line
    )


def read_digits(
    picture: Picture,
    run: TrainState | str | os.PathLike[str],
    class_names: Iterable[str] = (),
) -> Reading:
    """Returns the numbers in a picture, read by a trained model of the ten digits.

    Digits that touch are divided where the model recognizes the parts best. Other marks
    are not read: letters may be taken for digits, while dashes and small marks separate
    groups of digits.

    Args:
      picture: see :func:`flaxmnist.pictures.prepare.prepare`.
      run: a state, or a run directory, whose best checkpoint on validation is used.
      class_names: a name per class; if empty, those of the run, or "0", "1", … for a
        state.

    Raises:
      UserError: `picture` is not a picture, the run does not exist, or its classes are
        not the ten digits.
    """
    state, class_names, calibration = trained(run, class_names)
    check_reads(state, class_names)
    return read_picture(picture, state, calibration)


def read_picture(
    picture: Picture, state: TrainState, calibration: Calibration = UNCALIBRATED
) -> Reading:
    """Returns the numbers that a state reads; see :func:`read_digits`."""
    ink = find_ink(picture)
    if ink is None:
        return Reading((), (NOTHING_FOUND,), None)
    digits = tuple(
        Digit(
            box=_in_picture(part.glyph.box, ink),
            line=part.glyph.line,
            starts_group=part.glyph.starts_group and part.first == 0,
            is_divided=part.is_cut,
            is_wide=part.width > _WIDE,
            prediction=prediction,
        )
        for part, prediction in divide(segment(ink.strength), state, calibration)
    )
    return Reading(digits, ink.warnings if digits else (NOTHING_FOUND,), ink)


def check_reads(state: TrainState, class_names: tuple[str, ...]) -> None:
    """Raises a UserError if a model does not classify images of the ten digits."""
    if mnist.is_like(state.image_shape, class_names):
        return
    size = " × ".join(map(str, state.image_shape))
    raise UserError(
        f"the model classifies images of {size} as {', '.join(class_names[:3])}, …; "
        "numbers are read by models of 28 × 28 × 1 for the digits 0 to 9, such as "
        "those trained on mnist"
    )


def _in_picture(box: Box, ink: Ink) -> Box:
    """Returns a box of the ink in pixels of the picture."""
    left, top = (
        int(np.floor(start + side / ink.scale))
        for start, side in zip((ink.left, ink.top), box[:2], strict=True)
    )
    right, bottom = (
        int(np.ceil(start + side / ink.scale))
        for start, side in zip((ink.left, ink.top), box[2:], strict=True)
    )
    width, height = ink.size
    return max(left, 0), max(top, 0), min(right, width), min(bottom, height)
