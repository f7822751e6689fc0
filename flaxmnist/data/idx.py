"""The IDX format of the original MNIST files, raw or gzipped."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from flaxmnist.checks import UserError

# The parts of the original distribution, in the order that `read_all` returns them.
STEMS = ("train-images", "train-labels", "t10k-images", "t10k-labels")
_UBYTE = 0x08


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

    Args:
      path: the file; gzipped if its name ends in ``.gz``.
      rank: 3 for images, 1 for labels.

    Raises:
      UserError: the file is not IDX, or holds fewer or more bytes than it announces.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    header_size = 4 + 4 * rank
    try:
        with opener(path, "rb") as file:
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
            # What a header claims is not allocated before it is there.
            content = _read_at_most(file, size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}): fetch it again") from None
    if len(content) != size:
        found = "more" if len(content) > size else f"{len(content):,}"
        raise UserError(
            f"{path} holds {found} bytes of data: its header announces {size:,}; "
            "fetch the file again"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def _read_at_most(file, size: int) -> bytes:
    blocks = []
    while size > 0 and (block := file.read(min(size, 1 << 24))):
        blocks.append(block)
        size -= len(block)
    return b"".join(blocks)


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
