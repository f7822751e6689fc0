"""One picture of the set, and the random numbers that it is made from."""

import dataclasses
import io
import zlib
from collections.abc import Callable, Iterable, Iterator

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
      index: number of the picture within its condition.
      text: the digits that it shows, a line per line.
      file: the picture, encoded.
      boxes: of the digits in reading order: left, top, right, bottom; empty if unknown.
      source: where the forms of the digits come from, or the kind of the number.
    """

    condition: str
    index: int
    text: str
    file: bytes
    boxes: tuple[Box, ...] = ()
    source: str = ""


def random(half: str, name: str, index: int) -> Rng:
    """Returns the random numbers of one picture; other pictures do not change them."""
    return np.random.default_rng([HALVES.index(half), zlib.crc32(name.encode()), index])


def samples(
    take: Callable[..., Sample],
    conditions: Iterable[str],
    indices: Iterable[int],
    *rest: object,
) -> Iterator[Sample]:
    """Yields `take(condition, index, *rest)`, one condition after the other."""
    for condition in conditions:
        for index in indices:
            yield take(condition, index, *rest)


def png(pixels: np.ndarray) -> bytes:
    """Returns a picture as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()
