"""Accuracy of runs on corrupted MNIST images.

python -m benchmarks.corruptions --workdir runs/a runs/b [--split validation] [--json F]

The fifteen corruptions, with their strengths, are those of Mu and Gilmer (2019),
"MNIST-C: A Robustness Benchmark for Computer Vision", arXiv:1906.02337. They are
implemented anew and applied to the split that the run was trained with, so the figures
compare runs here, not with the published images. Choose recipes on validation.
"""

import argparse
import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import ndimage
from skimage.feature import canny

from benchmarks.rejection import logits_of
from flaxmnist import open_run

SIDE, CENTER = 28, 13.5


def shot_noise(images, rng):
    """Counts few photons."""
    return rng.poisson(3 * images) / 3


def impulse_noise(images, rng):
    """Sets 17 % of the pixels to black or white."""
    draw = rng.random(images.shape)
    return np.where(draw < 0.085, 0, np.where(draw > 0.915, 1, images))


def glass_blur(images, rng):
    """Exchanges neighbouring pixels, between two Gaussian blurs."""
    images = _blur(images, 0.7)
    each = np.arange(len(images))
    for _ in range(2):
        for row in range(SIDE - 1, 0, -1):
            for column in range(SIDE - 1, 0, -1):
                up, left = rng.integers(0, 2, (2, len(images)))
                here = rng.random(len(images)) < 0.5
                other = each, row - up * here, column - left * here
                moved = images[other]
                images[other] = images[:, row, column]
                images[:, row, column] = moved
    return _blur(images, 0.7)


def motion_blur(images, rng):
    """Smears images to one side, along a direction of -45° to 45°."""
    angles = np.deg2rad(rng.uniform(-45, 45, len(images)))
    reach, each = 10, np.arange(len(images))
    kernels = np.zeros((len(images), 2 * SIDE, 2 * SIDE))
    for distance in range(reach + 1):
        rows = np.rint(distance * np.sin(angles)).astype(int)
        columns = np.rint(distance * np.cos(angles)).astype(int)
        kernels[each, rows, columns] += np.exp(-(distance**2) / (2 * 3**2))
    kernels /= kernels.sum(axis=(1, 2), keepdims=True)
    size = kernels.shape[1:]
    product = np.fft.rfft2(images, size) * np.fft.rfft2(kernels)
    return np.fft.irfft2(product, size)[:, :SIDE, :SIDE]


def shear(images, rng):
    """Slants by 0.4 radians, to either side."""
    slants = np.tan(0.4) * rng.choice([-1, 1], len(images))
    return _by_sign(images, slants, lambda slant: [[1, 0], [slant, 1]])


def scale(images, rng):
    """Shrinks to 70 %."""
    return _affine(images, np.eye(2) / 0.7)


def rotate(images, rng):
    """Rotates by 0.4 radians, either way."""
    angles = 0.4 * rng.choice([-1, 1], len(images))
    return _by_sign(
        images,
        angles,
        lambda a: [[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]],
    )


def brightness(images, rng):
    """Adds half of the range."""
    return images + 0.5


def translate(images, rng):
    """Shifts by 3 pixels along each axis, either way."""
    shifts = 3 * rng.choice([-1, 1], (len(images), 2))
    moved = [ndimage.shift(*pair, order=0) for pair in zip(images, shifts, strict=True)]
    return np.stack(moved)


def stripe(images, rng):
    """Inverts the left quarter and the right quarter."""
    outer = abs(np.arange(SIDE) - CENTER) > 7
    return np.where(outer, 1 - images, images)


def fog(images, rng):
    """Adds a plasma fractal of three times the contrast of the image."""
    fields = np.stack([_plasma(rng) for _ in range(32)])
    which = rng.integers(len(fields), size=len(images))
    top, left = rng.integers(fields.shape[1] - SIDE, size=(2, len(images)))
    span = np.arange(SIDE)
    haze = fields[
        which[:, None, None],
        (top[:, None] + span)[:, :, None],
        (left[:, None] + span)[:, None, :],
    ]
    level = images.max(axis=(1, 2), keepdims=True)
    return (images + 3 * haze) * level / (level + 3)


def spatter(images, rng):
    """Covers parts with dark gray drops."""
    liquid = _blur(rng.normal(0.65, 0.3, images.shape), 1)
    drops = _blur((liquid > 0.65).astype(float), 1.5)
    drops[drops < 0.8] = 0
    return images * (1 - drops) + 63 / 255 * drops


def dotted_line(images, rng):
    """Draws a dotted line from the left to the right."""
    ends = rng.integers(0, 27, (len(images), 2))
    return images + np.stack([_dotted(*pair) for pair in ends.tolist()])


def zigzag(images, rng):
    """Draws a zigzag from the left to the right."""
    first = rng.integers(0, 27, len(images))
    last = first + rng.integers(-5, 5, len(images))
    ends = np.stack([first, last], axis=1)
    return images + np.stack([_zigzag(*pair) for pair in ends.tolist()])


def canny_edges(images, rng):
    """Keeps the edges only."""
    return np.stack([canny(image) for image in images])


CORRUPTIONS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    function.__name__: function
    for function in (
        shot_noise,
        impulse_noise,
        glass_blur,
        motion_blur,
        shear,
        scale,
        rotate,
        brightness,
        translate,
        stripe,
        fog,
        spatter,
        dotted_line,
        zigzag,
        canny_edges,
    )
}


def corrupt(name: str, images: np.ndarray, seed: int = 0) -> np.ndarray:
    """Returns corrupted images, the same for the same arguments.

    Args:
      name: one of `CORRUPTIONS`.
      images: uint8 `[count, 28, 28]` or `[count, 28, 28, 1]`.
      seed: of the random draws.
    """
    rng = np.random.default_rng([seed, [*CORRUPTIONS].index(name)])
    gray = images.reshape(-1, SIDE, SIDE) / 255
    changed = np.clip(CORRUPTIONS[name](gray, rng), 0, 1)
    return np.round(255 * changed).astype(np.uint8).reshape(images.shape)


def _blur(images, sigma):
    return ndimage.gaussian_filter(images, (0, sigma, sigma), mode="nearest")


def _affine(images, matrix):
    """Takes each pixel from the place that `matrix` maps it to, about the centre."""
    whole = np.eye(3)
    whole[1:, 1:] = matrix
    offset = np.array([0, CENTER, CENTER])
    return ndimage.affine_transform(images, whole, offset - whole @ offset, order=1)


def _by_sign(images, values, matrix_of):
    changed = np.empty_like(images)
    for value in np.unique(values):
        chosen = values == value
        changed[chosen] = _affine(images[chosen], matrix_of(value))
    return changed


def _plasma(rng, size=256, decay=1.4):
    """Returns a height map from 0 to 1 by the diamond-square algorithm, on a torus."""
    field, step, swing = np.zeros((size, size)), size, 1.0
    while step > 1:
        half = step // 2
        middle = functools.partial(_middle, rng, swing)
        corners = field[::step, ::step]
        pairs = corners + np.roll(corners, -1, 0)
        field[half::step, half::step] = middle(pairs + np.roll(pairs, -1, 1))
        centers = field[half::step, half::step]
        above = centers + np.roll(centers, 1, 0)
        field[::step, half::step] = middle(above + corners + np.roll(corners, -1, 1))
        beside = centers + np.roll(centers, 1, 1)
        field[half::step, ::step] = middle(beside + corners + np.roll(corners, -1, 0))
        step, swing = half, swing / decay**2
    return (field - field.min()) / np.ptp(field)


def _middle(rng, swing, total):
    return total / 4 + rng.uniform(-swing, swing, total.shape)


def _line(start, end):
    """Returns an image of a line between two points (column, row), left to right."""
    (left, top), (right, bottom) = start, end
    columns, rows = np.arange(SIDE), np.arange(SIDE)[:, None]
    distance = abs(rows - top - (bottom - top) / (right - left) * (columns - left))
    ink = 1 + np.log1p(-np.minimum(distance, 2.29) / 2.3)
    inside = (columns >= np.floor(left)) & (columns < np.ceil(right))
    return np.clip(ink, 0, 1) * inside


@functools.cache
def _dotted(first, last):
    return _line((0, first), (27, last)) * (np.arange(SIDE) // 2 % 2)


@functools.cache
def _zigzag(first, last):
    """Returns an image of a line with teeth of 2 pixels, 4 pixels apart."""
    angle = np.arctan((last - first) / 23)
    length = 23 / np.cos(angle)
    along = np.array([0, *np.arange(2, length, 4), length])
    across = 2.0 * (-1) ** np.arange(1, len(along) + 1)
    across[[0, -1]] = 0
    columns = 2 + along * np.cos(angle) - across * np.sin(angle)
    rows = first + along * np.sin(angle) + across * np.cos(angle)
    points = [*zip(columns, rows, strict=True)]
    return np.minimum(sum(map(_line, points, points[1:])), 1)


def measure(workdirs: list[str], split: str) -> dict[str, dict[str, float]]:
    """Returns the accuracy of each run, clean and by corruption."""
    runs = {workdir: open_run(workdir) for workdir in workdirs}
    data = {workdir: run.dataset.split(split) for workdir, run in runs.items()}
    found: dict[str, dict[str, float]] = {workdir: {} for workdir in runs}
    for name in ("clean", *CORRUPTIONS):
        for workdir, run in runs.items():
            examples = data[workdir]
            images = examples.images
            if name != "clean":
                images = corrupt(name, images)
            classes = logits_of(run.state, images).argmax(axis=1)
            found[workdir][name] = float((classes == examples.labels).mean())
    for values in found.values():
        values["mean"] = float(np.mean([values[name] for name in CORRUPTIONS]))
    return found


def main() -> None:
    """Prints a table with a column per run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, nargs="+")
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    parser.add_argument("--json", type=Path, help="a file for the accuracies")
    args = parser.parse_args()
    found = measure(args.workdir, args.split)
    print(f"accuracy on {args.split}".ljust(22), *found)
    for name in ("clean", *CORRUPTIONS, "mean"):
        print(f"{name:<22}", *(f"{values[name]:.2%}" for values in found.values()))
    if args.json:
        record = {"split": args.split, "accuracy": found}
        args.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
