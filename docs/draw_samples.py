"""Draws the sample pictures of `docs/samples`.

python -m docs.draw_samples
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy.interpolate import make_interp_spline
from scipy.ndimage import gaussian_filter

from benchmarks.drawn_digits import SECOND_HAND

FOLDER = Path(__file__).parent / "samples"
PAPER, PEN = np.array([250, 246, 236]), np.array([38, 52, 112])


def write(text: str, size: tuple[int, int], height: int, seed: int) -> np.ndarray:
    """Returns the ink of a handwritten number, from 0 to 1, `[height, width]`."""
    rng = np.random.default_rng(seed)
    sheet = Image.new("L", size)
    pen = ImageDraw.Draw(sheet)
    width = 0.75 * height
    left = (size[0] - width * len(text)) / 2
    for index, digit in enumerate(map(int, text)):
        turn, grow = rng.normal(0, 0.05), rng.uniform(0.9, 1.05)
        top = (size[1] - height) / 2 + rng.normal(0, 0.06) * height
        for is_round, places in SECOND_HAND[digit]:
            points = np.array([pair.split(",") for pair in places.split()], float)
            curve = make_interp_spline(
                np.arange(len(points)), points, k=3 if is_round else 1
            )
            points = curve(np.linspace(0, len(points) - 1, 400)) / 100 - 0.5
            x, y = points[:, 0] * 0.55 - (0.12 + turn) * points[:, 1], points[:, 1]
            thick = height * (0.034 + 0.01 * np.sin(np.linspace(0, 5, len(points))))
            x = left + (index + 0.5) * width + grow * height * x
            y = top + (0.5 + grow * y) * height
            for box in np.stack([x - thick, y - thick, x + thick, y + thick], axis=-1):
                pen.ellipse([*box], fill=255)
    return np.asarray(sheet.filter(ImageFilter.GaussianBlur(1))) / 255


def photograph(ink: np.ndarray, shadow: float, seed: int) -> Image.Image:
    """Returns blue ink on paper, with a soft shadow from one corner."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : ink.shape[0] * 1j, -1 : 1 : ink.shape[1] * 1j]
    light = 1 - shadow / (1 + np.exp(14 * (x + 0.45 * y - 0.05)))
    grain = gaussian_filter(rng.normal(0, 6, ink.shape), 1.2)
    depth = (0.9 + gaussian_filter(rng.normal(0, 0.3, ink.shape), 2)) * ink
    pixels = PAPER + (PEN - PAPER) * depth.clip(0, 1)[..., None] + grain[..., None]
    return Image.fromarray((pixels * light[..., None]).clip(0, 255).astype(np.uint8))


def main() -> None:
    """Writes the pictures."""
    FOLDER.mkdir(exist_ok=True)
    seven = photograph(write("7", (300, 300), 170, seed=1), 0, seed=1)
    seven.quantize(24).save(FOLDER / "7.png", optimize=True)
    number = photograph(write("2024", (960, 540), 260, seed=4), 0.35, seed=2)
    number.save(FOLDER / "2024.jpg", quality=80)


if __name__ == "__main__":
    main()
