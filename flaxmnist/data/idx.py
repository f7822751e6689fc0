"""The IDX format of the original MNIST files, raw or gzipped."""

import gzip
import math
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from flaxmnist.checks import UserError

# The parts of the original distribution, in the order that `read_all` returns them.
STEMS = ("train-images", "train-labels", "t10k-images", "t10k-labels")
_UBYTE = 0x08
# Bytes that a gzipped file may hold, a thousand times its own; 1.4 million images.
MOST_UNPACKED = 1 << 30


def find(directory: Path) -> list[Path]:
    """Returns the four files in `directory`, in either spelling, gzipped or raw.

    Raises:
      UserError: one of them is not there.
    """
    paths = []
    for stem in STEMS:
        rank = 3 if stem.endswith("images") else 1
        spellings = [
            f"{stem}{separator}idx{rank}-ubyte{suffix}"
            for suffix in ("", ".gz")
            for separator in ("-", ".")
        ]
        found = [directory / name for name in spellings if (directory / name).is_file()]
        if not found:
            raise UserError(
                f"no {spellings[0]} (or .gz) in {directory}: expected the four "
                "MNIST-format files; set data.dir or FLAXMNIST_DATA_DIR to their folder"
            )
        paths.append(found[0])
    return paths


def read(path: Path, rank: int) -> np.ndarray:
    """Returns the uint8 array in an IDX file.

    One that is not gzipped stays on disk, an `np.memmap`: the system reads what is
    asked for, and forgets it when memory is short.

    Args:
      path: the file; gzipped if its name ends in ``.gz``.
      rank: 3 for images, 1 for labels.

    Raises:
      UserError: the file is not IDX, or holds fewer or more bytes than it announces,
        or announces too many for a gzipped one.
    """
    packed = path.suffix == ".gz"
    header_size = 4 + 4 * rank
    try:
        with (gzip.open if packed else open)(path, "rb") as file:
            header = file.read(header_size)
            if header[:4] != bytes((0, 0, _UBYTE, rank)) or len(header) < header_size:
                raise UserError(
                    f"{path} starts with {header[:4].hex() or 'nothing'}: expected "
                    f"{bytes((0, 0, _UBYTE, rank)).hex()}, the IDX magic number of "
                    f"{'images' if rank == 3 else 'labels'}; fetch the file again"
                )
            shape = struct.unpack(f">{rank}I", header[4:])
            if rank == 3 and shape[1:] != (28, 28):
                raise UserError(
                    f"{path} holds images of {shape[1]}×{shape[2]}: expected 28×28"
                )
            size = math.prod(shape)
            if packed and size > MOST_UNPACKED:
                raise UserError(
                    f"{path} announces {size:,} bytes: expected at most "
                    f"{MOST_UNPACKED:,} in a gzipped file; unpack it with gunzip"
                )
            content = _read_at_most(file, size + 1) if packed else b""
        found = len(content) if packed else path.stat().st_size - header_size
        if found == size and not packed:
            return np.memmap(path, np.uint8, "r", header_size, shape)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}): fetch it again") from None
    if found != size:
        raise UserError(
            f"{path} holds {'more' if found > size else f'{found:,}'} bytes of data: "
            f"its header announces {size:,}; fetch the file again"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def _read_at_most(file: Any, size: int) -> bytearray:
    # What a header claims is not allocated before it is there.
    content = bytearray()
    while block := file.read(min(size - len(content), 1 << 24)):
        content += block
    return content


def write(folder: Path, stem: str, examples: Iterable[tuple[np.ndarray, int]]) -> None:
    """Writes images, uint8 `[28, 28]`, and their labels as they come, however many.

    Args:
      folder: gets ``<stem>-images-idx3-ubyte`` and ``<stem>-labels-idx1-ubyte``.
      stem: ``"train"`` or ``"t10k"``.
      examples: images and labels.
    """
    with (
        (folder / f"{stem}-images-idx3-ubyte").open("wb") as images,
        (folder / f"{stem}-labels-idx1-ubyte").open("wb") as labels,
    ):
        count = 0
        images.write(bytes(16))
        labels.write(bytes(8))
        for image, label in examples:
            images.write(image.tobytes())
            labels.write(bytes((label,)))
            count += 1
        images.seek(0)
        images.write(struct.pack(">4B3I", 0, 0, _UBYTE, 3, count, 28, 28))
        labels.seek(0)
        labels.write(struct.pack(">4BI", 0, 0, _UBYTE, 1, count))


def read_all(paths: list[Path]) -> list[np.ndarray]:
    """Returns train images, train labels, test images, test labels.

    Raises:
      UserError: a file is damaged, images and labels differ in number, or a label is
        above 9.
    """
    arrays = [
        read(path, 3 if index % 2 == 0 else 1) for index, path in enumerate(paths)
    ]
    for images, labels in ((0, 1), (2, 3)):
        if len(arrays[images]) != len(arrays[labels]):
            raise UserError(
                f"{paths[images]} holds {len(arrays[images]):,} images but "
                f"{paths[labels]} {len(arrays[labels]):,} labels: expected as many"
            )
        if arrays[labels].max(initial=0) > 9:
            raise UserError(
                f"{paths[labels]} holds the label {arrays[labels].max()}: "
                "expected labels from 0 to 9"
            )
    return arrays
