"""One picture of the set, and the random numbers that it is made from."""

import dataclasses
import io
import zlib

import numpy as np
from PIL import Image

from benchmarks.photographs.paper import Rng

HALVES = ("choose", "report")
# Left, top, right, bottom in pixels.
Box = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class Sample:
    """A picture.

    Attributes:
      condition: how it was taken.
      text: the digits that it shows, a line per line.
      file: the picture, encoded.
      boxes: of the digits in reading order: left, top, right, bottom; empty if unknown.
      source: where the forms of the digits come from, or the kind of the number.
    """

    condition: str
    text: str
    file: bytes
    boxes: tuple[Box, ...] = ()
    source: str = ""


def random(half: str, name: str, index: int) -> Rng:
    """Returns the random numbers of one picture; other pictures do not change them."""
    return np.random.default_rng([HALVES.index(half), zlib.crc32(name.encode()), index])


def png(pixels: np.ndarray) -> bytes:
    """Returns a picture as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()
