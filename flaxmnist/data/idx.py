"""The IDX format of the original MNIST files, raw or gzipped."""

import gzip
import math
import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from flaxmnist.errors import UserError, shown
from flaxmnist.runtime.files import open_regular
from flaxmnist.runtime.memory import available_memory

# File names of the original distribution, in the order of the result of `read_all`.
STEMS = ("train-images", "train-labels", "t10k-images", "t10k-labels")
_UBYTE = 0x08
_GZIP_MAGIC = b"\x1f\x8b"
# Maximum sizes in bytes: of a file (175 million images); of the content of a gzipped
# file (1.4 million images); of a raw file that is read into memory instead of mapped.
MAX_BYTES, MAX_UNPACKED, MAX_IN_MEMORY = 1 << 37, 1 << 30, 1 << 28


def find(directory: Path) -> list[Path]:
    """Returns the four files in `directory`, in either spelling, gzipped or raw.

    Raises:
      UserError: one of them is missing.
    """
    paths = []
    for stem in STEMS:
        rank = 3 if stem.endswith("images") else 1
        spellings = [
            f"{stem}{separator}idx{rank}-ubyte{suffix}"
            for suffix in ("", ".gz")
            for separator in ("-", ".")
        ]
        found = [path for name in spellings if os.path.exists(path := directory / name)]
        if not found:
            raise UserError(
                f"no {spellings[0]} (or .gz) in {shown(str(directory))}; expected the "
                "four MNIST-format files. Set data.dir or FLAXMNIST_DATA_DIR to their "
                "directory"
            )
        paths.append(found[0])
    return paths


def read(path: Path, rank: int) -> np.ndarray:
    """Returns the uint8 array in an IDX file, raw or gzipped.

    A raw file above 256 MiB, or larger than the available memory, is returned as an
    `np.memmap`: the system reads only the pages that are used, and drops them if memory
    runs short.

    Args:
      path: the file. Its content, not its name, decides whether it is gzipped.
      rank: 3 for images, 1 for labels.

    Raises:
      UserError: the file is not IDX, its size is not the one in its header, or it does
        not fit into memory.
    """
    try:
        with open_regular(path, MAX_BYTES) as raw:
            packed = raw.read(2) == _GZIP_MAGIC
            raw.seek(0)
            return _unpack(path, rank, raw) if packed else _read_raw(path, rank, raw)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{shown(str(path))} cannot be read ({error}). Download it again"
        ) from None


def _read_raw(path: Path, rank: int, file: BinaryIO) -> np.ndarray:
    shape = _read_shape(path, rank, file)
    offset, size = file.tell(), math.prod(shape)
    if (found := os.fstat(file.fileno()).st_size - offset) != size:
        raise _wrong_size(path, f"{found:,}", size)
    if size > min(MAX_IN_MEMORY, available_memory()):
        return np.memmap(file, np.uint8, "r", offset, shape)
    return _to_array(path, file, shape)


def _unpack(path: Path, rank: int, file: BinaryIO) -> np.ndarray:
    with cast(BinaryIO, gzip.GzipFile(fileobj=file)) as unpacked:
        shape = _read_shape(path, rank, unpacked)
        size = math.prod(shape)
        if size > MAX_UNPACKED:
            raise UserError(
                f"{shown(str(path))} announces {size:,} bytes; expected at most "
                f"{MAX_UNPACKED:,} bytes in a gzipped file. Unpack it with gunzip"
            )
        # Gzip enlarges incompressible data by less than this. A larger file contains
        # padding, which could take forever to read.
        if os.fstat(file.fileno()).st_size > size + size // 100 + (1 << 16):
            raise _wrong_size(path, "more", size)
        if size > (free := available_memory()):
            raise UserError(
                f"{shown(str(path))} needs {size:,} bytes of memory; {free:,} are "
                "available. Unpack it with gunzip: a raw file can stay on disk"
            )
        return _to_array(path, unpacked, shape)


def _read_shape(path: Path, rank: int, file: BinaryIO) -> tuple[int, ...]:
    """Returns the shape in the header of an IDX file."""
    header_size = 4 + 4 * rank
    header = file.read(header_size)
    magic = bytes((0, 0, _UBYTE, rank))
    if header[:4] != magic or len(header) < header_size:
        raise UserError(
            f"{shown(str(path))} starts with {header[:4].hex() or 'nothing'}; expected "
            f"{magic.hex()}, the IDX magic number of "
            f"{'images' if rank == 3 else 'labels'}. Download the file again"
        )
    shape = struct.unpack(f">{rank}I", header[4:])
    if rank == 3 and shape[1:] != (28, 28):
        raise UserError(
            f"{shown(str(path))} contains images of {shape[1]}×{shape[2]}; "
            "expected 28×28"
        )
    return shape


def _to_array(path: Path, file: BinaryIO, shape: tuple[int, ...]) -> np.ndarray:
    """Reads an array; reads at most one byte more, to detect a longer file."""
    size = math.prod(shape)
    # A damaged header can announce any size: allocate memory only as data arrives.
    content = bytearray()
    while block := file.read(min(size + 1 - len(content), 1 << 24)):
        content += block
    if len(content) != size:
        found = "more" if len(content) > size else f"{len(content):,}"
        raise _wrong_size(path, found, size)
    return np.frombuffer(content, np.uint8).reshape(shape)


def _wrong_size(path: Path, found: str, size: int) -> UserError:
    return UserError(
        f"{shown(str(path))} contains {found} bytes of data; its header announces "
        f"{size:,}. Download the file again"
    )


def write(folder: Path, stem: str, examples: Iterable[tuple[np.ndarray, int]]) -> None:
    """Writes a stream of images, uint8 `[28, 28]`, and labels to two IDX files.

    Args:
      folder: receives ``<stem>-images-idx3-ubyte`` and ``<stem>-labels-idx1-ubyte``.
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
      UserError: a file is damaged, the numbers of images and labels differ, or a label
        is above 9.
    """
    arrays = [
        read(path, 3 if index % 2 == 0 else 1) for index, path in enumerate(paths)
    ]
    for images, labels in ((0, 1), (2, 3)):
        if len(arrays[images]) != len(arrays[labels]):
            raise UserError(
                f"{shown(str(paths[images]))} contains {len(arrays[images]):,} images, "
                f"and {paths[labels].name} {len(arrays[labels]):,} labels; expected "
                "equal numbers"
            )
        if arrays[labels].max(initial=0) > 9:
            raise UserError(
                f"{shown(str(paths[labels]))} contains the label "
                f"{arrays[labels].max()}; expected labels from 0 to 9"
            )
    return arrays
