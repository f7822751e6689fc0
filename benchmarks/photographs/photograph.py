"""Photographs of one digit on a sheet."""

import dataclasses
import io

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.photographs import camera
from benchmarks.photographs.inks import (
    BALLPOINT,
    SOURCES,
    Handwriting,
    Pen,
    turned,
    write,
)
from benchmarks.photographs.paper import PAPERS, Rng, Shape

SHAPES = ((800, 600), (600, 800), (1024, 768), (640, 480), (900, 900))


@dataclasses.dataclass(frozen=True)
class Photograph:
    """A digit on a sheet, photographed; an attribute per property of the picture.

    Attributes:
      paper: "plain", "ruled", "graph" or "board".
      pen: what the digit is written with.
      share: height of the digit as a share of the shorter side of the picture.
      height: of the digit in pixels, instead of a share.
      shape: of the picture; None for one of `SHAPES`.
      sides: where the picture shows a desk; or how many sides.
      rim: width of the desk, as a share of the picture.
      tilt: perspective, as a share of the picture.
      angle: least and largest rotation of the digit in degrees, in both directions.
      shadow: least and largest depth, and whether the edge is soft.
      blur: standard deviation, as a share of the height of the digit.
      noise: least and largest standard deviation of the sensor.
      quality: least and largest quality of the JPEG file.
      line: "under" or "across" the digit.
      cut: "tight" or "border": what the digit is cropped to.
    """

    paper: str = "plain"
    pen: Pen = BALLPOINT
    share: tuple[float, float] = (0.2, 0.5)
    height: int | None = None
    shape: Shape | None = None
    sides: int = 0
    rim: tuple[float, float] = (0.05, 0.18)
    tilt: tuple[float, float] = (0, 0.012)
    angle: tuple[float, float] = (0, 0)
    shadow: tuple[float, float, bool] | None = None
    blur: tuple[float, float] = (0, 0)
    noise: tuple[float, float] = (0.004, 0.012)
    quality: tuple[int, int] = (78, 93)
    line: str = ""
    cut: str = ""

    def take(self, digit: int, source: str, hand: Handwriting, rng: Rng) -> bytes:
        """Returns the JPEG file."""
        shape = self.shape or SHAPES[rng.integers(len(SHAPES))]
        height = self.height or round(rng.uniform(*self.share) * min(shape))
        ink = hand.ink(digit, source, height, self.pen, rng)
        # A bar that fills its picture is no digit to anybody.
        while self.cut == "tight" and ink.shape[1] < 0.3 * height:
            ink = hand.ink(digit, SOURCES[rng.integers(4)], height, self.pen, rng)
        if any(self.angle):
            ink = turned(ink, rng.choice([-1, 1]) * rng.uniform(*self.angle))
        sides = tuple(rng.permutation(camera.SIDES)[: self.sides])
        view = camera.look(shape, rng, sides, self.rim, rng.uniform(*self.tilt))
        sheet = PAPERS[self.paper](view.sheet, rng, rng.uniform(0.35, 1.6) * height)
        box = self._write(sheet, ink, view, rng)
        seen = view.see(sheet, rng)
        if self.cut:
            seen = self._cropped(seen, view.place(box), rng)
        return camera.jpeg(self._exposed(seen, height, rng), self._quality(rng))

    def _quality(self, rng: Rng) -> int:
        return int(rng.integers(self.quality[0], self.quality[1] + 1))

    def _write(self, sheet, ink, view: camera.View, rng: Rng) -> np.ndarray:
        """Writes the digit; returns the corners x, y of its box on the sheet."""
        top, left, bottom, right = view.visible
        height, width = ink.shape
        # At least a margin around the digit, also where the sheet is turned.
        margin = min(0.3 * height + 12, 0.2 * min(bottom - top, right - left))
        y, x = (
            round(rng.uniform(low, max(low, high)))
            for low, high in (
                (top + margin, bottom - margin - height),
                (left + margin, right - margin - width),
            )
        )
        write(sheet, ink, (y, x), self.pen, rng)
        if self.line:
            self._draw_line(sheet, (y, x), ink.shape, rng)
        return np.array(
            [[x, y], [x + width, y], [x + width, y + height], [x, y + height]]
        )

    def _draw_line(self, sheet, place: Shape, extent: Shape, rng: Rng) -> None:
        """Draws a line below the digit, or one that crosses it and the whole sheet."""
        (y, x), (height, width) = place, extent
        if self.line == "under":
            start, stop = x - 0.35 * height, x + width + 0.35 * height
            level = y + height * (1 + rng.uniform(0.07, 0.2))
            thick, pen = rng.uniform(0.03, 0.07) * height, self.pen
        else:
            start, stop = 0, sheet.shape[1]
            level = y + height * rng.uniform(0.15, 0.85)
            thick = max(1.2, rng.uniform(0.012, 0.03) * height)
            tones = ([0.5, 0.6, 0.78], [0.55, 0.55, 0.57], [0.85, 0.5, 0.5])
            pen = Pen(tuple(tones[rng.integers(3)]))
        slope = rng.uniform(-0.03, 0.03) * (stop - start) * (self.line == "under")
        line = Image.new("L", sheet.shape[1::-1])
        ImageDraw.Draw(line).line(
            [(start, level), (stop, level + slope)],
            fill=255,
            width=max(2, round(thick)),
        )
        ink = np.asarray(line, np.float32) / 255
        write(sheet, ink, (0, 0), pen, rng)

    def _cropped(self, seen: np.ndarray, corners: np.ndarray, rng: Rng) -> np.ndarray:
        """Returns the picture cropped at the digit, on all sides or on some."""
        left, top = np.round(corners.min(0)).astype(int)
        right, bottom = np.round(corners.max(0)).astype(int)
        if self.cut == "tight":
            return seen[max(0, top) : bottom, max(0, left) : right]
        height, width = seen.shape[:2]
        box = {"left": 0, "top": 0, "right": width, "bottom": height}
        touched = {"left": left, "top": top, "right": right, "bottom": bottom}
        for side in rng.permutation(camera.SIDES)[: rng.integers(1, 3)]:
            box[side] = touched[side]
        return seen[box["top"] : box["bottom"], box["left"] : box["right"]]

    def _exposed(self, seen: np.ndarray, height: int, rng: Rng) -> np.ndarray:
        shape = seen.shape[:2]
        seen = seen * camera.light(shape, rng)
        seen *= camera.wrinkles(shape, rng)[..., None]
        if self.shadow:
            depth = rng.uniform(*self.shadow[:2])
            seen *= camera.shadow(shape, rng, depth, self.shadow[2])[..., None]
        if any(self.blur) and rng.random() < 0.4:
            size = 3 * rng.uniform(*self.blur) * height
            angle = rng.uniform(0, np.pi)
            motion = (size * np.cos(angle), size * np.sin(angle))
            seen = camera.defocus(seen, 0, motion)
        sigma = max(rng.uniform(0.4, 0.8), rng.uniform(*self.blur) * height)
        seen = camera.defocus(seen, sigma)
        return seen + camera.grain(shape, rng, rng.uniform(*self.noise))


@dataclasses.dataclass(frozen=True)
class Large:
    """A digit in a picture of 12 megapixels: its paper is drawn small and enlarged."""

    factor: int = 5

    def take(self, digit: int, source: str, hand: Handwriting, rng: Rng) -> bytes:
        """Returns the JPEG file."""
        shape = ((4000, 3000), (3000, 4000))[rng.integers(2)]
        small = tuple(side // self.factor for side in shape)
        height = int(rng.choice([100, 300, 600, 1200]))
        view = camera.look(small, rng)
        pitch = max(10, rng.uniform(0.5, 1.5) * height / self.factor)
        sheet = PAPERS[("plain", "plain", "ruled")[rng.integers(3)]](
            view.sheet, rng, pitch
        )
        seen = np.clip(view.see(sheet, rng) * camera.light(small, rng), 0, 1)
        image = Image.fromarray((seen * 255).astype(np.uint8))
        pixels = np.array(image.resize(shape[::-1], Image.Resampling.BILINEAR))
        ink = turned(
            hand.ink(digit, source, height, BALLPOINT, rng), rng.uniform(-4, 4)
        )
        top, left = (
            int(rng.uniform(0.1, 0.9) * (side - extent))
            for side, extent in zip(shape, ink.shape, strict=True)
        )
        part = pixels[top : top + ink.shape[0], left : left + ink.shape[1]]
        written = part / np.float32(255)
        write(written, ink, (0, 0), BALLPOINT, rng)
        part[:] = np.clip(camera.defocus(written, 1.2), 0, 1) * 255
        noise = camera.grain((640, 640), rng, rng.uniform(0.006, 0.02)) * 255
        noise = noise.round().astype(np.int16)
        for y in range(0, shape[0], 640):
            for x in range(0, shape[1], 640):
                part = pixels[y : y + 640, x : x + 640]
                noisy = part + noise[: part.shape[0], : part.shape[1]]
                part[:] = noisy.clip(0, 255)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=85)
        return file.getvalue()
