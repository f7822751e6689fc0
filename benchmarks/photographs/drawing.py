"""Digits on the canvas of a program: screenshots, scans and icons."""

import dataclasses

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.photographs.inks import Handwriting, Pen
from benchmarks.photographs.paper import Rng, clouds
from benchmarks.photographs.sample import png


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A digit on a canvas of a program: a screenshot, a scan, an icon.

    Attributes:
      form: "frame", "inset frame", "title bar", "white on black", "transparent" or
        "16 bits".
    """

    form: str

    def take(self, digit: int, source: str, hand: Handwriting, rng: Rng) -> bytes:
        """Returns the PNG file."""
        side = int(rng.integers(200, 640))
        height, width = side, round(side * rng.uniform(0.8, 1.3))
        pen = Pen((0, 0, 0), 0, (8, 18))
        tall = round(rng.uniform(0.35, 0.6) * min(height, width))
        ink = hand.ink(digit, source, tall, pen, rng)
        cover = np.zeros((height, width), np.float32)
        top, left = (
            round(rng.uniform(0.3, 0.7) * (room - extent))
            for room, extent in zip(cover.shape, ink.shape, strict=True)
        )
        cover[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
        if self.form == "transparent":
            color = rng.integers(0, 100, 3) if rng.random() < 0.7 else [250, 250, 250]
            flat = np.broadcast_to(np.float32(color), (*cover.shape, 3))
            return png(np.dstack([flat, cover * 255]).astype(np.uint8))
        if self.form == "16 bits":
            paper = 1000 * (1 - 0.12 * clouds(cover.shape, rng, 3).clip(0, 3) / 3)
            noisy = paper * (1 - 0.8 * cover) + rng.normal(0, 8, cover.shape)
            return png(noisy.clip(0, 1023).astype(np.uint16))
        if self.form == "white on black":
            ground = rng.uniform(0, 0.12)
            return png((255 * (ground + cover * (0.97 - ground))).astype(np.uint8))
        gray = 1 - cover * rng.uniform(0.8, 1)
        gray = self._framed(gray, tall, rng)
        return png((gray.clip(0, 1) * 255).astype(np.uint8))

    def _framed(self, gray: np.ndarray, tall: int, rng: Rng) -> np.ndarray:
        if self.form == "title bar":
            bar = Image.new("L", (gray.shape[1], round(rng.uniform(0.2, 0.4) * tall)))
            pen = ImageDraw.Draw(bar)
            pen.rectangle([0, 0, *bar.size], fill=int(rng.integers(20, 70)))
            title = ("Sketch", "Untitled", "Paint", "Notes")[rng.integers(4)]
            font = ImageFont.load_default(max(9, 0.5 * bar.height))
            middle = (0.25 * bar.height, bar.height / 2)
            pen.text(middle, title, fill=225, font=font, anchor="lm")
            return np.vstack([np.asarray(bar, np.float32) / 255, gray])
        inset = 6 if self.form == "inset frame" else 0
        thick = int(rng.integers(2, 9))
        framed = gray.copy()
        inside = np.zeros(gray.shape, bool)
        inside[inset : -inset or None, inset : -inset or None] = True
        border = inset + thick
        inside[border:-border, border:-border] = False
        framed[inside] = rng.uniform(0, 0.2)
        return framed
