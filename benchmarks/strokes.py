"""Digits and letters drawn by strokes and set in typefaces."""

import functools
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.interpolate import CubicSpline

# Whether a stroke is a spline, and its points.
Strokes = list[tuple[bool, str]]
# The strokes of a digit, in a box from 0,0 to 100,100, y downwards.
# Round ones are splines.
ROUND, STRAIGHT = True, False
FIRST_HAND: dict[int, Strokes] = {
    0: [(ROUND, "50,0 12,50 50,100 88,50 50,0")],
    1: [(STRAIGHT, "50,0 50,100")],
    2: [(ROUND, "12,25 35,2 75,8 82,35 10,98"), (STRAIGHT, "10,98 92,98")],
    3: [(ROUND, "12,10 55,0 82,22 42,46"), (ROUND, "42,46 88,70 55,100 10,88")],
    4: [(STRAIGHT, "60,0 6,64 95,64"), (STRAIGHT, "70,34 70,100")],
    5: [(STRAIGHT, "85,2 22,2 17,43"), (ROUND, "17,43 55,37 88,66 58,98 10,90")],
    6: [(ROUND, "75,2 30,32 14,70 48,99 84,75 52,54 17,72")],
    7: [(STRAIGHT, "8,3 90,3 42,100")],
    8: [(ROUND, "50,47 18,24 50,0 82,24 50,47 12,75 50,100 88,75 50,47")],
    9: [(ROUND, "84,22 50,0 16,24 46,48 84,22"), (STRAIGHT, "84,22 78,62 66,100")],
}
SECOND_HAND = FIRST_HAND | {
    1: [(STRAIGHT, "38,16 56,0 50,100")],
    2: [(ROUND, "15,20 45,0 82,20 60,60 20,90 30,80 60,92 95,88")],
    4: [(STRAIGHT, "16,2 10,52 90,52"), (STRAIGHT, "78,8 74,100")],
    7: [(STRAIGHT, "8,3 90,3 42,100"), (STRAIGHT, "34,52 80,50")],
}
# Letters that nobody reads as digits.
LETTERS: dict[str, Strokes] = {
    "A": [(STRAIGHT, "8,100 50,0 92,100"), (STRAIGHT, "24,64 77,64")],
    "E": [(STRAIGHT, "85,2 18,2 18,98 88,98"), (STRAIGHT, "18,50 72,50")],
    "F": [(STRAIGHT, "85,2 18,2 18,100"), (STRAIGHT, "18,48 70,48")],
    "H": [
        (STRAIGHT, "12,0 12,100"),
        (STRAIGHT, "88,0 88,100"),
        (STRAIGHT, "12,50 88,50"),
    ],
    "K": [
        (STRAIGHT, "16,0 16,100"),
        (STRAIGHT, "86,2 18,56"),
        (STRAIGHT, "34,44 90,99"),
    ],
    "M": [(STRAIGHT, "5,100 14,2 50,70 86,2 95,100")],
    "N": [(STRAIGHT, "12,100 12,2 86,98 86,0")],
    "P": [(STRAIGHT, "18,100 18,0"), (ROUND, "18,3 70,4 86,27 66,51 18,54")],
    "R": [
        (STRAIGHT, "18,100 18,0"),
        (ROUND, "18,3 70,4 84,26 66,48 18,52"),
        (STRAIGHT, "46,52 90,100"),
    ],
    "T": [(STRAIGHT, "4,2 96,2"), (STRAIGHT, "50,2 50,100")],
    "W": [(STRAIGHT, "2,0 26,100 50,34 74,100 98,0")],
    "X": [(STRAIGHT, "10,0 90,100"), (STRAIGHT, "90,0 10,100")],
    "a": [(ROUND, "80,40 48,22 18,56 44,98 80,66"), (ROUND, "81,26 80,66 84,92 98,97")],
    "e": [(ROUND, "16,58 84,54 56,22 16,58 46,98 90,84")],
    "k": [
        (STRAIGHT, "22,0 22,100"),
        (STRAIGHT, "78,34 24,70"),
        (STRAIGHT, "38,62 84,99"),
    ],
    "m": [
        (STRAIGHT, "6,30 6,100"),
        (ROUND, "6,50 28,30 50,56 50,100"),
        (ROUND, "50,50 72,30 94,56 94,100"),
    ],
    "w": [(ROUND, "4,30 22,97 50,52 76,97 96,30")],
}
TYPEFACES = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Italic",
    "DejaVuSansMono",
    "STIXGeneral",
    "cmr10",
    "cmss10",
    "cmtt10",
)


def _spline(points: np.ndarray) -> np.ndarray:
    at = np.concatenate(
        [[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))]
    )
    return CubicSpline(at, points)(np.linspace(0, at[-1], 60))


def draw_strokes(
    strokes: Strokes, width: float, rng: np.random.Generator, size: int = 200
) -> Image.Image:
    """Returns the ink of a character drawn by hand, mode L, in a square.

    Args:
      strokes: of the character.
      width: of a stroke, in pixels of a square of 200 pixels.
      rng: for jitter, slant and proportion.
      size: side of the square in pixels; the character is about 0.72 of it tall.
    """
    scale = 3
    slant, turn = rng.uniform(-0.12, 0.3), rng.uniform(-0.12, 0.12)
    proportion = rng.uniform(0.62, 0.85)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    sheet = Image.new("L", (size * scale, size * scale))
    pen = ImageDraw.Draw(sheet)
    jitters = {}  # Strokes that meet go on meeting.
    for is_round, text in strokes:
        points = np.array([tuple(map(float, pair.split(","))) for pair in text.split()])
        for point in points:
            jitters.setdefault(tuple(point), rng.normal(0, 1.8, 2))
        points = (points + [jitters[tuple(point)] for point in points]) / 100 - 0.5
        points[:, 0] = points[:, 0] * proportion - slant * points[:, 1]
        points = (_spline(points) if is_round else points) @ matrix.T
        points = (points * 0.72 + 0.5) * size * scale
        radius = width * (size / 200) * scale / 2
        pen.line(
            [*map(tuple, points)], fill=255, width=round(2 * radius), joint="curve"
        )
        for x, y in points[[0, -1]] if is_round else points:
            pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=255)
    return sheet.resize((size, size), Image.Resampling.BOX)


def draw_typed(text: str, face: str, size: int = 170) -> Image.Image:
    """Returns the ink of one character in a typeface, mode L, in a square.

    Args:
      text: the character.
      face: the name of a typeface in Matplotlib's data, such as one of `TYPEFACES`.
      size: of the font, in pixels.
    """
    side = round(size * 200 / 170)
    sheet = Image.new("L", (side, side))
    pen = ImageDraw.Draw(sheet)
    pen.text((side / 2, side / 2), text, fill=255, font=_font(face, size), anchor="mm")
    return sheet


@functools.cache
def _font(face: str, size: int) -> ImageFont.FreeTypeFont:
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{face}.ttf")
    return ImageFont.truetype(str(path), size)
