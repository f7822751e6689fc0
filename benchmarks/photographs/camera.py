"""How a telephone sees a sheet: perspective, light, shadows, blur, noise, JPEG."""

import dataclasses
import io
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

from benchmarks.photographs.paper import Rng, Shape, clouds, desk

SIDES = ("left", "top", "right", "bottom")


@dataclasses.dataclass(frozen=True)
class View:
    """What a camera shows of a sheet.

    Attributes:
      shape: height and width of the picture.
      sheet: height and width of the sheet.
      matrix: from x, y, 1 in the picture to those on the sheet, float64 `[3, 3]`.
      visible: a part of the sheet that is in the picture: top, left, bottom, right.
      has_desk: whether the picture shows more than the sheet.
    """

    shape: Shape
    sheet: Shape
    matrix: np.ndarray
    visible: tuple[float, float, float, float]
    has_desk: bool

    def see(self, sheet: np.ndarray, rng: Rng) -> np.ndarray:
        """Returns the picture of a sheet, and of the desk below it."""
        image = Image.fromarray((np.clip(sheet, 0, 1) * 255).astype(np.uint8))
        coefficients = (self.matrix / self.matrix[2, 2]).ravel()[:8]

        def warp(picture):
            return np.asarray(
                picture.transform(
                    self.shape[::-1],
                    Image.Transform.PERSPECTIVE,
                    coefficients,
                    Image.Resampling.BILINEAR,
                ),
                np.float32,
            )

        seen = warp(image) / 255
        if not self.has_desk:
            return seen
        paper = Image.new("L", image.size, 255)
        cover = ndimage.gaussian_filter(warp(paper) / 255, 0.7)
        # The sheet throws a narrow shadow on the desk.
        depth = rng.uniform(0.2, 0.6)
        offset = rng.uniform(-1, 1, 2) * 0.008 * max(self.shape)
        edge = ndimage.shift(cover, offset, order=0, mode="nearest")
        dark = 1 - depth * ndimage.gaussian_filter(edge, 0.005 * max(self.shape))
        below = desk(self.shape, rng) * dark[..., None]
        return below + cover[..., None] * (seen - below)

    def place(self, points: np.ndarray) -> np.ndarray:
        """Returns where points x, y of the sheet are in the picture, `[count, 2]`."""
        there = np.c_[points, np.ones(len(points))] @ np.linalg.inv(self.matrix).T
        return there[:, :2] / there[:, 2:]


def look(
    shape: Shape,
    rng: Rng,
    sides: tuple[str, ...] = (),
    rim: tuple[float, float] = (0.05, 0.18),
    tilt: float = 0.012,
) -> View:
    """Returns a view of a sheet.

    Args:
      shape: height and width of the picture.
      rng: of the position of the camera.
      sides: where the picture shows the desk.
      rim: least and largest width of the desk, as a share of the picture.
      tilt: largest displacement of a corner, as a share of the picture.
    """
    height, width = shape
    beyond = 0.14  # Paper outside the picture, where there is no desk.
    first, extent = [], []
    for near, far, side in (("left", "right", width), ("top", "bottom", height)):
        before, after = (
            rng.uniform(*rim) * side if name in sides else -beyond * side
            for name in (near, far)
        )
        first.append(before)
        extent.append(side - before - after)
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], float)
    angle = np.deg2rad(rng.uniform(-2.5, 2.5))
    rotation = np.array(
        [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    )
    middle = np.array([width, height]) / 2
    moved = (corners - middle) @ rotation.T + middle
    moved += rng.uniform(-tilt, tilt, (4, 2)) * [width, height]
    seen = moved - first
    visible = (
        max(0, *seen[:2, 1]),
        max(0, *seen[[0, 3], 0]),
        min(extent[1], *seen[2:, 1]),
        min(extent[0], *seen[1:3, 0]),
    )
    return View(
        shape,
        (round(extent[1]), round(extent[0])),
        _homography(corners, seen),
        visible,
        bool(sides),
    )


def _homography(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Returns the matrix that maps four points x, y onto four others."""
    rows, values = [], []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.append(np.linalg.solve(rows, values), 1).reshape(3, 3)


def light(shape: Shape, rng: Rng) -> np.ndarray:
    """Returns uneven light, float32 `[height, width, 3]`, of at most 1."""
    y, x = (np.linspace(-1, 1, side, dtype=np.float32) for side in shape)
    y = y[:, None]
    angle = rng.uniform(0, 2 * np.pi)
    slope = (x * math.cos(angle) + y * math.sin(angle)) / math.sqrt(2)
    fall = rng.uniform(0, 0.14)
    vignette = rng.uniform(0, 0.12) * (x**2 + y**2) / 2
    warmth = rng.uniform(-1, 1) * np.array([0.05, 0, -0.09])
    exposure = rng.uniform(0.85, 1.02)
    tone = exposure * (1 - fall + fall * slope - vignette)
    return tone[..., None] * np.float32(1 + warmth)


def shadow(shape: Shape, rng: Rng, depth: float, is_soft: bool) -> np.ndarray:
    """Returns the share of light that a hand, an arm or a telephone leaves.

    Args:
      shape: height and width in pixels.
      rng: of the form.
      depth: share of the light that is missing in the shadow.
      is_soft: whether the edge is wide.
    """
    step = max(1, max(shape) // 600)
    small = (-(-shape[0] // step), -(-shape[1] // step))
    mask = Image.new("L", small[::-1])
    pen, (width, height) = ImageDraw.Draw(mask), mask.size
    side, reach = rng.integers(4), rng.uniform(0.3, 0.65)
    if rng.random() < 0.5:  # The straight edge of a telephone or a body.
        angle = np.deg2rad(side * 90 + rng.uniform(-30, 30))
        y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        inside = x * np.cos(angle) + y * np.sin(angle) > 1 - 2 * reach
        mask = Image.fromarray(inside.astype(np.uint8) * 255)
    else:  # A hand: an arm from one side, and fingers.
        center = np.array([width, height]) / 2 + rng.uniform(-0.2, 0.2, 2) * width
        angle = np.deg2rad(side * 90 + rng.uniform(-30, 30))
        toward = np.array([np.cos(angle), np.sin(angle)])
        size = rng.uniform(0.12, 0.2) * max(width, height)
        arm = [tuple(center), tuple(center + 2 * max(width, height) * toward)]
        pen.line(arm, fill=255, width=round(2 * size))
        pen.ellipse([*(center - 1.3 * size), *(center + 1.3 * size)], fill=255)
        for bend in np.deg2rad(rng.uniform(-50, 50, 3)):
            turn = np.array(
                [[np.cos(bend), -np.sin(bend)], [np.sin(bend), np.cos(bend)]]
            )
            tip = center - 2.6 * size * (turn @ toward)
            pen.line([tuple(center), tuple(tip)], fill=255, width=round(0.5 * size))
            pen.ellipse([*(tip - 0.25 * size), *(tip + 0.25 * size)], fill=255)
    radius = rng.uniform(0.02, 0.06) if is_soft else rng.uniform(0.001, 0.003)
    mask = mask.filter(ImageFilter.GaussianBlur(radius * max(width, height)))
    if step > 1:
        mask = mask.resize(shape[::-1], Image.Resampling.BILINEAR)
    return 1 - np.float32(depth / 255) * np.asarray(mask, np.float32)


def grain(shape: Shape, rng: Rng, sigma: float) -> np.ndarray:
    """Returns the noise of a sensor, float32 `[height, width, 3]`: gray and colors."""
    side = 640  # A large picture repeats its noise, to be fast.
    part = (min(side, shape[0]), min(side, shape[1]))
    noise = np.repeat(rng.standard_normal((*part, 1), np.float32), 3, axis=2)
    noise += 0.5 * rng.standard_normal((*part, 3), np.float32)
    if sigma > 0.03:  # At a high sensitivity, noise is blotchy.
        blotches = rng.standard_normal((*part, 3), np.float32)
        noise += 3 * ndimage.uniform_filter(blotches, (5, 5, 0))
    tiles = [-(-whole // piece) for whole, piece in zip(shape, part, strict=True)]
    return np.tile(np.float32(sigma) * noise, (*tiles, 1))[: shape[0], : shape[1]]


def defocus(seen: np.ndarray, sigma: float, motion: tuple[float, float] | None = None):
    """Returns a picture out of focus, or blurred by motion of some pixels x, y."""
    image = np.clip(seen, 0, 1)
    if motion is None:
        return ndimage.gaussian_filter(image, (sigma, sigma, 0))
    steps = max(2, round(np.hypot(*motion)))
    total = np.zeros_like(image)
    for share in np.linspace(-0.5, 0.5, steps):
        shift = tuple(round(share * part) for part in motion[::-1])
        total += np.roll(image, shift, (0, 1))
    return total / steps


def jpeg(seen: np.ndarray, quality: int) -> bytes:
    """Returns a picture as a JPEG file."""
    file = io.BytesIO()
    pixels = (np.clip(seen, 0, 1) * 255 + 0.5).astype(np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()


def wrinkles(shape: Shape, rng: Rng) -> np.ndarray:
    """Returns the shading of paper that was folded or crumpled slightly, near 1."""
    return 1 + rng.uniform(0.004, 0.02) * clouds(shape, rng, rng.uniform(3, 10))
