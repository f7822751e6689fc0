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

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from benchmarks.strokes import (
    FIRST_HAND,
    SECOND_HAND,
    TYPEFACES,
    draw_strokes,
    draw_typed,
)
from flaxmnist.inference.predict import predict_prepared
from flaxmnist.inference.saved_run import open_run
from flaxmnist.pictures.prepare import STEPS, prepare

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


def _ink(digit: int, hand: str, style: str, rng: np.random.Generator) -> np.ndarray:
    """Returns where there is ink, from 0 to 1, on a sheet."""
    if hand == "typeface":
        ink = draw_typed(str(digit), rng.choice(TYPEFACES))
        if style in ("thin", "bold"):
            change = ImageFilter.MinFilter if style == "thin" else ImageFilter.MaxFilter
            ink = ink.filter(change(7))
    else:
        width = {"thin": rng.uniform(1.5, 3), "bold": rng.uniform(26, 34)}
        strokes = FIRST_HAND if hand == "first hand" else SECOND_HAND
        ink = draw_strokes(strokes[digit], width.get(style, rng.uniform(9, 18)), rng)
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
    samples = [*drawn()]
    hands, styles, digits, pictures = zip(*samples, strict=True)
    if args.save:
        args.save.mkdir(parents=True, exist_ok=True)
        for hand, style, digit, picture in samples:
            suffix = "jpg" if picture.format == "JPEG" else "png"
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
