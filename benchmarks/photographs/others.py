"""Pictures that show no digit: letters, symbols, scribbles, noise, empty pages."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw
from scipy.interpolate import CubicSpline

from benchmarks.photographs import camera
from benchmarks.photographs.inks import (
    BALLPOINT,
    FACES,
    PENS,
    letter_ink,
    turned,
    typed,
    write,
)
from benchmarks.photographs.paper import PAPERS, Rng, clouds
from benchmarks.photographs.photograph import SHAPES
from benchmarks.photographs.sample import Sample, png, random
from benchmarks.strokes import LETTERS

COUNT = 60
# Without O, o, I and l, which are digits to every reader.
_TYPED = "ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnpqrstuvwxyz"
_SYMBOLS = "?!&@#%+=*$€→←↑✓<>{}~^§∞±÷"
_PENS = (BALLPOINT, BALLPOINT, *(PENS[name] for name in ("blue pen", "marker")))


def _photograph(ink: np.ndarray | None, rng: Rng, paper: str = "") -> bytes:
    """Returns a photograph of ink on paper, or of an empty page."""
    shape = SHAPES[rng.integers(len(SHAPES))]
    sides = tuple(rng.permutation(camera.SIDES)[: rng.integers(0, 3)])
    view = camera.look(shape, rng, sides)
    paper = paper or ("plain", "plain", "ruled", "graph")[rng.integers(4)]
    sheet = PAPERS[paper](view.sheet, rng, rng.uniform(0.08, 0.3) * min(shape))
    if ink is not None:
        top, left, bottom, right = view.visible
        y = rng.uniform(top, bottom - ink.shape[0])
        x = rng.uniform(left, right - ink.shape[1])
        pen = _PENS[rng.integers(len(_PENS))]
        write(sheet, ink, (round(y), round(x)), pen, rng)
    seen = view.see(sheet, rng) * camera.light(shape, rng)
    if rng.random() < 0.3:
        depth = rng.uniform(0.2, 0.5)
        seen *= camera.shadow(shape, rng, depth, rng.random() < 0.5)[..., None]
    seen = camera.defocus(seen, rng.uniform(0.4, 0.9))
    seen += camera.grain(shape, rng, rng.uniform(0.004, 0.015))
    return camera.jpeg(seen, int(rng.integers(78, 93)))


def _height(rng: Rng) -> int:
    return round(rng.uniform(0.2, 0.45) * 600)


def _typed_letter(index: int, rng: Rng) -> tuple[str, bytes]:
    letter = _TYPED[index % len(_TYPED)]
    ink = typed(letter, str(rng.choice(FACES[:9])), _height(rng))
    return letter, _photograph(ink, rng)


def _drawn_letter(index: int, rng: Rng) -> tuple[str, bytes]:
    letter = list(LETTERS)[index % len(LETTERS)]
    return letter, _photograph(letter_ink(letter, _height(rng), BALLPOINT, rng), rng)


def _symbol(index: int, rng: Rng) -> tuple[str, bytes]:
    symbol = _SYMBOLS[index % len(_SYMBOLS)]
    ink = typed(symbol, "DejaVuSans", _height(rng))
    ink = ink[:, : 2 * ink.shape[0]]
    ink = turned(ink, rng.uniform(-8, 8))
    return symbol, _photograph(ink[:400, :400], rng)


def _scribble(index: int, rng: Rng) -> tuple[str, bytes]:
    side, forms = 240, ("spline", "zigzag", "hatching")
    form = forms[index % len(forms)]
    image = Image.new("L", (3 * side, 3 * side))
    count = int(rng.integers(9, 18))
    if form == "spline":
        points = rng.uniform(0.08, 0.92, (count, 2))
        points = CubicSpline(np.arange(count), points)(np.linspace(0, count - 1, 600))
    else:
        x = np.linspace(0.1, 0.9, 2 * count)
        y = 0.5 + np.where(np.arange(2 * count) % 2, 1, -1) * rng.uniform(
            0.1, 0.4, 2 * count
        )
        points = np.c_[x, y]
        if form == "hatching":
            points = rng.permutation(points)
    points = [tuple(point) for point in np.clip(points, 0.03, 0.97) * image.width]
    width = round(3 * rng.uniform(4, 9))
    ImageDraw.Draw(image).line(points, fill=255, width=width, joint="curve")
    image = image.resize((side, side), Image.Resampling.BOX)
    return form, _photograph(np.asarray(image, np.float32) / 255, rng)


def _noise(index: int, rng: Rng) -> tuple[str, bytes]:
    shape = SHAPES[rng.integers(len(SHAPES))]
    if index % 3 == 0:
        pixels = rng.integers(0, 256, (*shape, 3)[: 2 + index % 2]).astype(np.uint8)
        return "pixels", png(pixels)
    if index % 3 == 1:
        tones = 0.5 + 0.2 * clouds(shape, rng, rng.uniform(4, 60))
        return "clouds", camera.jpeg(np.repeat(tones[..., None], 3, 2), 85)
    tones = np.full((*shape, 3), rng.uniform(0.02, 0.6))
    return "dark", camera.jpeg(tones + camera.grain(shape, rng, 0.08), 80)


def _empty(index: int, rng: Rng) -> tuple[str, bytes]:
    paper = tuple(PAPERS)[index % len(PAPERS)]
    return paper, _photograph(None, rng, paper)


KINDS: dict[str, Callable[[int, Rng], tuple[str, bytes]]] = {
    "letters, typefaces": _typed_letter,
    "letters, strokes": _drawn_letter,
    "symbols": _symbol,
    "scribbles": _scribble,
    "noise": _noise,
    "empty pages": _empty,
}
CONDITIONS = tuple(KINDS)


def take(condition: str, index: int, half: str) -> Sample:
    """Returns a picture without a digit, the same for the same arguments."""
    name, file = KINDS[condition](index, random(half, condition, index))
    return Sample(condition, index, "", file, (), name)
