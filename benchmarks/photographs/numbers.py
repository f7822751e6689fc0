"""Pictures of numbers of 2 to 10 digits, with the box of each digit."""

import dataclasses

import numpy as np
from PIL import Image

from benchmarks.photographs import camera
from benchmarks.photographs.camera import View
from benchmarks.photographs.inks import (
    BALLPOINT,
    FACES,
    PENS,
    Handwriting,
    Pen,
    write,
)
from benchmarks.photographs.paper import PAPERS, Rng
from benchmarks.photographs.sample import Box, Sample, random
from benchmarks.strokes import draw_typed

SHAPES = ((900, 1200), (768, 1024), (1200, 900), (600, 900))
# Pictures of each kind on each paper.
COUNT = 10


@dataclasses.dataclass(frozen=True)
class Kind:
    """How a number is written.

    Attributes:
      groups: least and largest number of digits of each group of a line.
      separators: characters, one of which stands between the groups.
      lines: least and largest number of lines.
      source: "MNIST", "typeface", "strokes", or "any".
      gap: least and largest space between digits, as a share of the height; if it is
        0, the digits touch.
    """

    groups: tuple[tuple[int, int], ...] = ((2, 10),)
    separators: str = " "
    lines: tuple[int, int] = (1, 1)
    source: str = "any"
    gap: tuple[float, float] = (0.1, 0.3)


KINDS = {
    "printed": Kind(source="typeface", gap=(0.06, 0.16)),
    "handwritten": Kind(source="strokes"),
    "MNIST's digits": Kind(source="MNIST"),
    "zip code": Kind(((5, 5),), source="MNIST", gap=(0.1, 0.35)),
    "phone number": Kind(((3, 3), (4, 4)), separators="-."),
    "two or three lines": Kind(((2, 6),), lines=(2, 3), gap=(0.08, 0.25)),
    "column": Kind(((1, 3),), lines=(3, 5), gap=(0.1, 0.25)),
    "touching": Kind(((2, 4),), source="MNIST", gap=(0, 0)),
}
PLACES = ("plain", "ruled", "shadowed", "photographed")
CONDITIONS = tuple(f"{kind}, {place}" for kind in KINDS for place in PLACES)


@dataclasses.dataclass(frozen=True)
class _Part:
    """Ink of a character, with its place on its line: y from the top, x."""

    text: str
    ink: np.ndarray
    y: int
    x: int

    def scaled(self, scale: float) -> "_Part":
        size = [max(1, round(side * scale)) for side in self.ink.shape[::-1]]
        ink = np.asarray(Image.fromarray(self.ink).resize(size))
        return _Part(self.text, ink, round(self.y * scale), round(self.x * scale))


_Line = list[_Part]


def _width(lines: list[_Line]) -> int:
    return max(part.x + part.ink.shape[1] for line in lines for part in line)


@dataclasses.dataclass(frozen=True)
class _Writer:
    """One hand with one pen, or one typeface: the digits of a number are alike."""

    kind: Kind
    hand: Handwriting
    rng: Rng
    source: str
    face: str
    pen: Pen
    height: int
    gap: float

    @classmethod
    def any(cls, kind: Kind, hand: Handwriting, height: int, rng: Rng) -> "_Writer":
        source = kind.source
        if source == "any":
            source = str(rng.choice(["MNIST", "typeface", "strokes"]))
        pen = (BALLPOINT, BALLPOINT, PENS["blue pen"], PENS["pencil"])[rng.integers(4)]
        pen = dataclasses.replace(pen, width=(rng.uniform(*pen.width),) * 2)
        face, gap = str(rng.choice(FACES)), rng.uniform(*kind.gap)
        return cls(kind, hand, rng, source, face, pen, height, gap)

    def line(self) -> _Line:
        """Returns a line of random digits."""
        parts: _Line = []
        for number, (least, most) in enumerate(self.kind.groups):
            if number:
                parts.append(self._separator(_width([parts])))
            for _ in range(self.rng.integers(least, most + 1)):
                parts.append(self._digit(parts))
        return parts

    def _digit(self, before: _Line) -> _Part:
        rng = self.rng
        # A 1 that touches is a part of its neighbour to every reader: 13 is B.
        digit = int(rng.integers(10) if self.gap else rng.choice([0, *range(2, 10)]))
        if self.source == "typeface":
            ink = _typed_digit(digit, self.face, self.height)
            y = self.height - ink.shape[0]
        else:
            tall = round(self.height * rng.uniform(0.86, 1.1))
            ink = self.hand.ink(digit, self.source, tall, self.pen, rng)
            y = self.height - ink.shape[0] + round(rng.uniform(-1, 1) * tall / 20)
        if not before:
            x = 0
        elif self.gap == 0:
            x = _touching(before[-1], ink, y)
        else:
            is_digit = before[-1].text.isdigit()
            gap = self.gap * rng.uniform(0.7, 1.3) if is_digit else 0.22
            x = _width([before]) + round(gap * self.height)
        return _Part(str(digit), ink, y, x)

    def _separator(self, x: int) -> _Part:
        text = str(self.rng.choice(list(self.kind.separators)))
        thick = max(2, round(self.pen.width[0] / 200 * self.height * 1.3))
        if text == "-":
            ink = np.ones((thick, round(0.3 * self.height)), np.float32)
            y = round(0.55 * self.height)
        else:
            rows = np.linspace(-1, 1, 2 * thick, dtype=np.float32)
            ink = np.clip((1 - np.hypot(rows[:, None], rows)) * thick, 0, 1)
            y = self.height - len(ink)
        return _Part(text, ink, y, x + round(0.12 * self.height))


def _typed_digit(digit: int, face: str, height: int) -> np.ndarray:
    """Returns a digit at the size at which the typeface's 0 has this height."""
    size = max(24, round(1.4 * height))
    zero = draw_typed("0", face, size).getbbox()
    scale = height / (zero[3] - zero[1])
    image = draw_typed(str(digit), face, max(8, round(size * scale)))
    return np.asarray(image.crop(image.getbbox()), np.float32) / 255


def _touching(before: _Part, ink: np.ndarray, y: int) -> int:
    """Returns the leftmost x at which the ink touches that of the digit before."""
    height, width = before.ink.shape
    low, high = max(y, before.y), min(y + len(ink), before.y + height)
    right = before.ink[low - before.y : high - before.y] > 0.5
    left = ink[low - y : high - y] > 0.5
    rows = right.any(1) & left.any(1)
    ends = width - right[rows, ::-1].argmax(1)
    begins = left[rows].argmax(1)
    room = (ends - begins).max() if rows.any() else width
    return before.x + int(room) - max(2, round(0.015 * len(ink)))


def take(condition: str, index: int, half: str, hand: Handwriting) -> Sample:
    """Returns the picture of a number, the same for the same arguments."""
    rng = random(half, condition, index)
    name, place = condition.split(", ")
    shape = SHAPES[rng.integers(len(SHAPES))]
    sides, tilt = (), 0.01
    if place == "photographed":
        sides = tuple(rng.permutation(camera.SIDES)[: rng.integers(1, 5)])
        tilt = rng.uniform(0.02, 0.06)
    view = camera.look(shape, rng, sides, (0.04, 0.12), tilt)
    height = round(rng.uniform(0.08, 0.16) * min(shape))
    writer = _Writer.any(KINDS[name], hand, height, rng)
    least, most = KINDS[name].lines
    lines = [writer.line() for _ in range(rng.integers(least, most + 1))]
    pitch = round(rng.uniform(1.5, 2) * height)
    # On a small sheet, people write smaller.
    top, left, bottom, right = view.visible
    tall = pitch * len(lines)
    scale = min(1, 0.85 * min((right - left) / _width(lines), (bottom - top) / tall))
    lines = [[part.scaled(scale) for part in line] for line in lines]
    pitch = round(pitch * scale)
    paper = "ruled" if place == "ruled" else "plain"
    sheet = PAPERS[paper](view.sheet, rng, float(pitch))
    boxes = _write(sheet, lines, pitch, view, writer)
    seen = view.see(sheet, rng) * camera.light(shape, rng)
    if place == "shadowed":
        depth, is_soft = rng.uniform(0.2, 0.55), rng.random() < 0.5
        seen *= camera.shadow(shape, rng, depth, is_soft)[..., None]
    seen = camera.defocus(seen, rng.uniform(0.4, 0.9))
    seen += camera.grain(shape, rng, rng.uniform(0.004, 0.015))
    text = "\n".join("".join(part.text for part in line) for line in lines)
    file = camera.jpeg(seen, int(rng.integers(78, 93)))
    return Sample(condition, index, text, file, boxes, writer.source)


def _write(
    sheet: np.ndarray, lines: list[_Line], pitch: int, view: View, writer: _Writer
) -> tuple[Box, ...]:
    """Writes lines onto the visible part; returns the boxes in the picture."""
    top, left, bottom, right = view.visible
    tall = pitch * (len(lines) - 1) + max(part.ink.shape[0] for part in lines[0])
    margin = 0.04 * min(sheet.shape[:2])
    rng, boxes = writer.rng, []
    y, x = (
        round(rng.uniform(start + margin, max(start + margin, stop - margin - extent)))
        for start, stop, extent in ((top, bottom, tall), (left, right, _width(lines)))
    )
    for number, line in enumerate(lines):
        for part in line:
            place = y + number * pitch + part.y, x + part.x
            write(sheet, part.ink, place, writer.pen, rng)
            if part.text.isdigit():
                points = np.argwhere(part.ink > 0.5) + place
                seen = view.place(points[:, ::-1])
                (x0, y0), (x1, y1) = seen.min(0), seen.max(0) + 1
                boxes.append(tuple(float(round(v, 1)) for v in (x0, y0, x1, y1)))
    return tuple(boxes)
