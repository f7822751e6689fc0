"""The ink of digits and letters, and pens that put it on paper."""

import dataclasses

import numpy as np
from PIL import Image

from benchmarks.photographs.paper import Rng, clouds
from benchmarks.strokes import (
    FIRST_HAND,
    LETTERS,
    SECOND_HAND,
    TYPEFACES,
    draw_strokes,
    draw_typed,
)

FACES = (
    *TYPEFACES,
    "DejaVuSerif-Bold",
    "DejaVuSansMono-Bold",
    "STIXGeneralBol",
    "cmb10",
)
# Where the form of a digit comes from. Half of the pictures show MNIST's digits.
SOURCES = ("MNIST", "typeface", "MNIST", "strokes")


@dataclasses.dataclass(frozen=True)
class Pen:
    """A pen.

    Attributes:
      color: red, green and blue from 0 to 1.
      grain: how much paper or board shows through, from 0 to 1.
      width: least and largest width of strokes, as `draw_strokes` takes it.
    """

    color: tuple[float, float, float]
    grain: float = 0.05
    width: tuple[float, float] = (7, 14)


BALLPOINT = Pen((0.11, 0.11, 0.14))
PENS = {
    "blue pen": Pen((0.12, 0.17, 0.56)),
    "red pen": Pen((0.76, 0.12, 0.14)),
    "pencil": Pen((0.42, 0.42, 0.44), 0.3, (6, 11)),
    "marker": Pen((0.1, 0.42, 0.22), 0.03, (22, 32)),
    "chalk": Pen((0.93, 0.93, 0.9), 0.4, (10, 17)),
}


@dataclasses.dataclass(frozen=True)
class Handwriting:
    """Handwritten digits, uint8 `[count, 28, 28]`, light on black, and their labels."""

    images: np.ndarray
    labels: np.ndarray

    def pick(self, digit: int, rng: Rng) -> np.ndarray:
        """Returns one image of a digit."""
        return self.images[rng.choice(np.flatnonzero(self.labels == digit))]

    def ink(
        self, digit: int, source: str, height: int, pen: Pen, rng: Rng
    ) -> np.ndarray:
        """Returns the ink of a digit, float32 `[height, width]` from 0 to 1.

        Args:
          digit: from 0 to 9.
          source: "MNIST", "typeface" or "strokes".
          height: in pixels.
          pen: for the width of strokes.
          rng: of the form.
        """
        if source == "MNIST":
            return enlarged(self.pick(digit, rng), height)
        if source == "typeface":
            return typed(str(digit), str(rng.choice(FACES)), height)
        strokes = (FIRST_HAND, SECOND_HAND)[rng.integers(2)][digit]
        return stroked(strokes, height, pen, rng)


def fit(ink: Image.Image, height: int) -> np.ndarray:
    """Returns ink cropped to its extent, scaled to a height, from 0 to 1."""
    ink = ink.crop(ink.getbbox())
    width = max(1, round(ink.width * height / ink.height))
    return np.asarray(ink.resize((width, height)), np.float32) / 255


def enlarged(image: np.ndarray, height: int) -> np.ndarray:
    """Returns the ink of one of MNIST's images at a height, with clear edges."""
    rows, columns = (np.flatnonzero((image > 40).any(axis)) for axis in (1, 0))
    part = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = height / part.shape[0]
    around = Image.fromarray(np.pad(part, 2).astype(np.float32) / 255)
    size = tuple(max(4, round(side * scale)) for side in around.size)
    smooth = np.asarray(around.resize(size, Image.Resampling.BICUBIC))
    edge = np.clip((smooth - 0.22) / 0.4, 0, 1)
    cover = Image.fromarray((edge * edge * (3 - 2 * edge) * 255).astype(np.uint8))
    return fit(cover, height)


def typed(text: str, face: str, height: int) -> np.ndarray:
    """Returns the ink of one character in a typeface."""
    return fit(draw_typed(text, face, max(24, round(1.5 * height))), height)


def stroked(strokes, height: int, pen: Pen, rng: Rng) -> np.ndarray:
    """Returns the ink of a character drawn by strokes."""
    size = max(60, round(height / 0.72))
    return fit(draw_strokes(strokes, rng.uniform(*pen.width), rng, size), height)


def letter_ink(letter: str, height: int, pen: Pen, rng: Rng) -> np.ndarray:
    """Returns the ink of a letter of `LETTERS` drawn by strokes."""
    return stroked(LETTERS[letter], height, pen, rng)


def turned(ink: np.ndarray, degrees: float) -> np.ndarray:
    """Returns ink rotated counterclockwise."""
    image = Image.fromarray((ink * 255).astype(np.uint8))
    image = image.rotate(degrees, Image.Resampling.BICUBIC, expand=True)
    image = image.crop(image.point(lambda value: 255 * (value > 40)).getbbox())
    return np.asarray(image, np.float32) / 255


def write(
    sheet: np.ndarray, ink: np.ndarray, place: tuple[int, int], pen: Pen, rng: Rng
) -> None:
    """Puts ink on a sheet, in place; ink outside of the sheet is lost.

    Args:
      sheet: the sheet.
      ink: where there is ink, from 0 to 1.
      place: top and left of the ink on the sheet.
      pen: color and grain.
      rng: of the grain.
    """
    top, left = place
    height, width = sheet.shape[:2]
    rows = slice(max(top, 0), min(top + ink.shape[0], height))
    columns = slice(max(left, 0), min(left + ink.shape[1], width))
    cover = ink[
        rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
    ]
    texture = clouds(cover.shape, rng, max(4, max(cover.shape) / 2))
    texture += clouds(cover.shape, rng, 5)
    cover = cover * np.clip(1 - pen.grain * (0.6 + 0.5 * texture), 0, 1)
    part = sheet[rows, columns]
    part += cover[..., None] * (np.float32(pen.color) - part)
