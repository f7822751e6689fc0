"""Pictures of digits as people bring them, and how many of them a run reads.

python -m benchmarks.drawn_digits --workdir runs/a [--save drawn]

Three hands (two sets of strokes, jittered and slanted, and typefaces) draw the ten
digits in each of the `STYLES`, always the same. The table says how many are recognised,
and how many would be if a step of the preprocessing were left out.
"""

import argparse
import io
import itertools
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from scipy.interpolate import CubicSpline

from flaxmnist.inference.predict import predict_prepared
from flaxmnist.inference.saved_run import open_run
from flaxmnist.pictures.prepare import STEPS, prepare

# A digit's strokes, in a box from 0,0 to 100,100, y downwards; round ones are splines.
ROUND, STRAIGHT = True, False
FIRST_HAND = {
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
HANDS = ("first hand", "second hand", "typeface")
STYLES = (
    "plain",
    "white on black",
    "transparent",
    "palette",
    "16 bits",
    "thin",
    "bold",
    "small in a corner",
    "wide sheet",
    "noisy",
    "uneven light",
    "photograph",
    "specks and an edge",
)
# The side of a sheet, in pixels.
SIDE = 280


def _spline(points: np.ndarray) -> np.ndarray:
    at = np.concatenate(
        [[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))]
    )
    return CubicSpline(at, points)(np.linspace(0, at[-1], 60))


def _strokes(strokes, width: float, rng: np.random.Generator) -> Image.Image:
    """Draws a digit by hand; returns its ink, mode L, on a sheet of its own."""
    size, scale = 200, 3
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
        radius = width * scale / 2
        pen.line(
            [*map(tuple, points)], fill=255, width=round(2 * radius), joint="curve"
        )
        for x, y in points[[0, -1]] if is_round else points:
            pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=255)
    return sheet.resize((size, size), Image.Resampling.BOX)


def _typed(digit: int, rng: np.random.Generator) -> Image.Image:
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    font = ImageFont.truetype(str(folder / f"{rng.choice(TYPEFACES)}.ttf"), 170)
    sheet = Image.new("L", (200, 200))
    ImageDraw.Draw(sheet).text((100, 100), str(digit), fill=255, font=font, anchor="mm")
    return sheet


def _ink(digit: int, hand: str, style: str, rng: np.random.Generator) -> np.ndarray:
    """Returns where there is ink, from 0 to 1, on a sheet."""
    if hand == "typeface":
        ink = _typed(digit, rng)
        if style in ("thin", "bold"):
            change = ImageFilter.MinFilter if style == "thin" else ImageFilter.MaxFilter
            ink = ink.filter(change(7))
    else:
        width = {"thin": rng.uniform(1.5, 3), "bold": rng.uniform(26, 34)}
        strokes = FIRST_HAND if hand == "first hand" else SECOND_HAND
        ink = _strokes(strokes[digit], width.get(style, rng.uniform(9, 18)), rng)
    ink = ink.crop(ink.getbbox())
    height, width = SIDE, 2 * SIDE if style == "wide sheet" else SIDE
    share = 0.25 if style == "small in a corner" else rng.uniform(0.45, 0.75)
    scale = share * SIDE / max(ink.size)
    ink = ink.resize([max(1, round(side * scale)) for side in ink.size])
    room = np.array([width, height]) - ink.size
    place = room * (0.06 if style == "small in a corner" else rng.uniform(0.2, 0.8, 2))
    sheet = Image.new("L", (width, height))
    sheet.paste(ink, tuple(map(int, place)))
    if style == "specks and an edge":
        pen = ImageDraw.Draw(sheet)
        pen.line([(0, SIDE - 6), (SIDE, SIDE - 4)], fill=255, width=4)
        for x, y in rng.uniform(6, SIDE - 16, (8, 2)):
            pen.ellipse([x, y, x + 3, y + 3], fill=255)
    return np.asarray(sheet, np.float32) / 255


def draw(digit: int, hand: str, style: str) -> Image.Image:
    """Returns a picture, the same for the same arguments."""
    rng = np.random.default_rng([digit, HANDS.index(hand), STYLES.index(style)])
    ink = _ink(digit, hand, style, rng)
    if style == "transparent":
        color = np.broadcast_to(np.float32(rng.integers(0, 90, 3)), (*ink.shape, 3))
        return Image.fromarray(np.dstack([color, ink * 255]).astype(np.uint8))
    if style == "palette":
        paper, pen = rng.integers(170, 256, 3), rng.integers(0, 90, 3)
        mixed = paper + (pen - paper) * ink[..., None]
        image = Image.fromarray(mixed.round().astype(np.uint8))
        return image.convert("P", palette=Image.Palette.ADAPTIVE, colors=32)
    if style == "16 bits":
        return Image.fromarray((40_000 - 30_000 * ink).astype(np.uint16))
    if style == "white on black":
        return Image.fromarray((ink * 255).astype(np.uint8))
    y, x = np.mgrid[-1 : 1 : ink.shape[0] * 1j, -1 : 1 : ink.shape[1] * 1j]
    light, grain = np.ones_like(ink), 0.0
    if style in ("uneven light", "photograph"):
        turn = rng.uniform(0, 2 * np.pi)
        light = 0.62 + 0.25 * (x * np.cos(turn) + y * np.sin(turn))
        light -= 0.1 * (x**2 + y**2)
        grain = 0.01
    if style == "noisy":
        grain = 0.12
    depth = 0.55 if style == "photograph" else 0.9
    gray = light * (1 - depth * ink) + rng.normal(0, 1, ink.shape) * grain
    image = Image.fromarray((np.clip(gray, 0, 1) * 255).astype(np.uint8))
    if style != "photograph":
        return image
    # As a telephone would hand it over: blurred, on its side, and saying so.
    image = image.filter(ImageFilter.GaussianBlur(1.2)).rotate(90, expand=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.convert("RGB").save(file, format="JPEG", quality=70, exif=exif)
    return Image.open(file)


def drawn() -> Iterator[tuple[str, str, int, Image.Image]]:
    """Yields hand, style, digit and picture of the whole set."""
    for hand, style, digit in itertools.product(HANDS, STYLES, range(10)):
        yield hand, style, digit, draw(digit, hand, style)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--save", type=Path, help="a folder for the pictures")
    args = parser.parse_args()
    state = open_run(args.workdir).state
    hands, styles, digits, pictures = zip(*drawn(), strict=True)
    if args.save:
        for hand, style, digit, picture in drawn():
            suffix = "jpg" if picture.format == "JPEG" else "png"
            args.save.mkdir(parents=True, exist_ok=True)
            path = args.save / f"{digit} {style}, {hand}.{suffix}"
            picture.save(path, exif=picture.getexif())

    def correct(steps):
        ready = [prepare(picture, steps) for picture in pictures]
        found = [prediction.digit for prediction in predict_prepared(ready, state)]
        return np.array(found) == digits

    whole = correct(STEPS)
    print(f"{len(pictures)} pictures: {whole.mean():.1%} recognised")
    for names in (hands, styles):
        for name in dict.fromkeys(names):
            chosen = np.array(names) == name
            print(f"  {name:<20}{whole[chosen].mean():>7.1%}  of {chosen.sum()}")
    for step in STEPS:
        share = correct([other for other in STEPS if other != step]).mean()
        print(f"without {step:<14}{share:>7.1%}")
    print(f"with none {'':<12}{correct(()).mean():>7.1%}")


if __name__ == "__main__":
    main()
