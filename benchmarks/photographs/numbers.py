"""Pictures of numbers of 2 to 10 digits, with the box of each digit."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from PIL import Image

from benchmarks.photographs import camera
from benchmarks.photographs.inks import (
    BALLPOINT,
    FACES,
    PENS,
    Handwriting,
    Pen,
    digit_ink,
    write,
)
from benchmarks.photographs.paper import PAPERS, Rng
from benchmarks.photographs.sample import Sample, random
from benchmarks.strokes import draw_strokes, draw_typed

SHAPES = ((900, 1200), (768, 1024), (1200, 900), (600, 900))
# Pictures of each kind on each paper.
COUNT = 10


@dataclasses.dataclass(frozen=True)
class Kind:
    """How a number is written.

    Attributes:
      groups: numbers of digits of the groups of a line, with separators between them;
        None for one group of 2 to 10 digits.
      separator: between groups: a hyphen, a dot or a space.
      lines: least and largest number of lines.
      source: "MNIST", "typeface", "strokes", or "any".
      gap: least and largest space between digits, as a share of the height.
    """

    groups: tuple[int, ...] | None = None
    separator: str = ""
    lines: tuple[int, int] = (1, 1)
    source: str = "any"
    gap: tuple[float, float] = (0.1, 0.3)


KINDS = {
    "printed": Kind(source="typeface", gap=(0.06, 0.16)),
    "handwritten": Kind(source="strokes"),
    "MNIST's digits": Kind(source="MNIST"),
    "zip code": Kind(groups=(5,), source="MNIST", gap=(0.1, 0.35)),
    "phone number": Kind(groups=(3, 4), separator="-."),
    "two or three lines": Kind(lines=(2, 3), gap=(0.08, 0.25)),
    "column": Kind(groups=(2,), lines=(3, 5), gap=(0.1, 0.25)),
    "touching": Kind(groups=(3,), source="MNIST", gap=(-0.03, 0.0)),
}
PLACES = ("plain", "ruled", "shadowed", "photographed")
CONDITIONS = tuple(f"{kind}, {place}" for kind in KINDS for place in PLACES)


@dataclasses.dataclass
class _Line:
    """Ink of a line, with the place of each part on the line."""

    text: str
    inks: list[np.ndarray]
    places: list[tuple[int, int]]
    is_digit: list[bool]

    @property
    def width(self) -> int:
        return max(
            x + ink.shape[1] for ink, (_, x) in zip(self.inks, self.places, strict=True)
        )


def _groups(kind: Kind, rng: Rng) -> tuple[int, ...]:
    if kind.groups is None:
        most = 10 if kind.lines == (1, 1) else 6
        return (int(rng.integers(2, most + 1)),)
    if kind is KINDS["column"]:
        return (int(rng.integers(1, 4)),)
    if kind is KINDS["touching"]:
        return (int(rng.integers(2, 5)),)
    return kind.groups


def _line(groups, kind: Kind, source, height: int, pen: Pen, hand, rng: Rng) -> _Line:
    line, x = _Line("", [], [], []), 0.0
    # A writer's digits and a typeface's digits are of one kind.
    face = str(rng.choice(FACES))
    gap = rng.uniform(*kind.gap)
    pen = dataclasses.replace(pen, width=(rng.uniform(*pen.width),) * 2)
    separator = (
        kind.separator[rng.integers(len(kind.separator))] if kind.separator else ""
    )
    for number, count in enumerate(groups):
        if number:
            part = _separator(separator, height, pen)
            level = 0.55 * height if separator == "-" else height - part.shape[0]
            x += 0.12 * height
            line.inks.append(part)
            line.places.append((round(level), round(x)))
            line.is_digit.append(False)
            line.text += separator
            x += part.shape[1] + 0.22 * height
        for _ in range(count):
            digit = int(rng.integers(10))
            tall = height
            if source != "typeface":
                tall = round(height * rng.uniform(0.86, 1.1))
            if source == "typeface":
                ink = _typed_digit(digit, face, height)
            else:
                ink = digit_ink(digit, source, tall, pen, hand, rng)
            top = height - ink.shape[0]
            if source != "typeface":
                top += round(rng.uniform(-0.05, 0.05) * height)
            if line.is_digit and line.is_digit[-1] and kind.gap[1] <= 0:
                x = _touching(line, ink, top)
            line.inks.append(ink)
            line.places.append((top, round(x)))
            line.is_digit.append(True)
            line.text += str(digit)
            x += ink.shape[1] + gap * height * rng.uniform(0.7, 1.3)
    return line


def _typed_digit(digit: int, face: str, height: int) -> np.ndarray:
    """Returns a digit at the size at which the typeface's 0 has this height."""
    size = max(24, round(1.4 * height))
    zero = draw_typed("0", face, size).getbbox()
    scale = height / (zero[3] - zero[1])
    image = draw_typed(str(digit), face, max(8, round(size * scale)))
    return np.asarray(image.crop(image.getbbox()), np.float32) / 255


def _touching(line: _Line, ink: np.ndarray, top: int) -> int:
    """Returns the leftmost x at which the ink touches that of the digit before."""
    before, (above, start) = line.inks[-1], line.places[-1]
    low, high = max(top, above), min(top + len(ink), above + len(before))
    right = before[low - above : high - above] > 0.5
    left = ink[low - top : high - top] > 0.5
    rows = right.any(1) & left.any(1)
    ends = before.shape[1] - right[rows, ::-1].argmax(1)
    begins = left[rows].argmax(1)
    room = (ends - begins).max(initial=before.shape[1])
    overlap = max(2, round(0.015 * len(ink)))
    return start + int(room if rows.any() else before.shape[1]) - overlap


def _separator(separator: str, height: int, pen: Pen) -> np.ndarray:
    thick = max(2, round(pen.width[0] / 200 * height * 1.1))
    if separator == "-":
        strokes = [(False, "0,50 100,50")]
        rng = np.random.default_rng(0)
        image = draw_strokes(strokes, pen.width[0] * 2, rng, max(40, height // 2))
        return np.asarray(image.crop(image.getbbox()), np.float32) / 255
    y, x = np.ogrid[-1 : 1 : 2 * thick * 1j, -1 : 1 : 2 * thick * 1j]
    return np.clip((1 - np.hypot(x, y)) * thick, 0, 1).astype(np.float32)


def take(condition: str, index: int, half: str, hand: Handwriting) -> Sample:
    """Returns the picture of a number, the same for the same arguments."""
    rng = random(half, condition, index)
    name, place = condition.split(", ")
    kind = KINDS[name]
    shape = SHAPES[rng.integers(len(SHAPES))]
    source = kind.source
    if source == "any":
        source = ("MNIST", "typeface", "strokes")[rng.integers(3)]
    pen = (BALLPOINT, BALLPOINT, PENS["blue pen"], PENS["pencil"])[rng.integers(4)]
    sides = ()
    if place == "photographed":
        sides = tuple(rng.permutation(camera.SIDES)[: rng.integers(1, 5)])
    tilt = rng.uniform(0.02, 0.06) if place == "photographed" else 0.01
    view = camera.look(shape, rng, sides, (0.04, 0.12), tilt)
    count = int(rng.integers(kind.lines[0], kind.lines[1] + 1))
    height = round(rng.uniform(0.08, 0.16) * min(shape))
    lines = [
        _line(_groups(kind, rng), kind, source, height, pen, hand, rng)
        for _ in range(count)
    ]
    pitch = round(rng.uniform(1.5, 2) * height)
    paper = "ruled" if place == "ruled" else "plain"
    sheet = PAPERS[paper](view.sheet, rng, float(pitch))
    boxes = _write_lines(sheet, lines, height, pitch, view, pen, rng)
    seen = view.see(sheet, rng) * camera.light(shape, rng)
    if place == "shadowed":
        depth, is_soft = rng.uniform(0.2, 0.55), rng.random() < 0.5
        seen *= camera.shadow(shape, rng, depth, is_soft)[..., None]
    seen = camera.defocus(seen, rng.uniform(0.4, 0.9))
    seen += camera.grain(shape, rng, rng.uniform(0.004, 0.015))
    text = "\n".join(line.text for line in lines)
    file = camera.jpeg(seen, int(rng.integers(78, 93)))
    return Sample(condition, text, file, boxes, source)


def _write_lines(sheet, lines, height, pitch, view, pen, rng):
    """Writes lines onto the visible part; returns the boxes in the picture."""
    top, left, bottom, right = view.visible
    width = max(line.width for line in lines)
    room = 0.9 * (right - left)
    if width > room:  # Smaller, as a writer does on a narrow sheet.
        scale = room / width
        lines = [_scaled(line, scale) for line in lines]
        height, pitch = round(height * scale), round(pitch * scale)
        width = max(line.width for line in lines)
    tall = pitch * (len(lines) - 1) + height
    margin = 0.04 * min(sheet.shape[:2])
    y = rng.uniform(top + margin, max(top + margin, bottom - margin - tall))
    x = rng.uniform(left + margin, max(left + margin, right - margin - width))
    boxes = []
    for number, line in enumerate(lines):
        for ink, (above, before), is_digit in zip(
            line.inks, line.places, line.is_digit, strict=True
        ):
            place = round(y + number * pitch + above), round(x + before)
            write(sheet, ink, *place, pen, rng)
            if is_digit:
                points = np.argwhere(ink > 0.5)[:, ::-1] + [place[1], place[0]]
                seen = view.place(points)
                (x0, y0), (x1, y1) = seen.min(0), seen.max(0) + 1
                boxes.append(tuple(float(round(v, 1)) for v in (y0, x0, y1, x1)))
    return tuple(boxes)


def _scaled(line: _Line, scale: float) -> _Line:
    def smaller(ink):
        size = [max(1, round(side * scale)) for side in ink.shape[::-1]]
        return np.asarray(Image.fromarray(ink).resize(size))

    places = [(round(y * scale), round(x * scale)) for y, x in line.places]
    return _Line(line.text, [*map(smaller, line.inks)], places, line.is_digit)


def samples(
    half: str, hand: Handwriting, conditions=CONDITIONS, count: int = COUNT
) -> Iterator[Sample]:
    """Yields the pictures of some conditions, one after the other."""
    for condition in conditions:
        for index in range(count):
            yield take(condition, index, half, hand)
