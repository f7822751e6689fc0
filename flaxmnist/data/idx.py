"""The IDX format of the original MNIST files, raw or compressed by gzip or xz."""

import contextlib
import gzip
import io
import lzma
import math
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from flaxmnist.core.batch import MAX_CHANNELS, MAX_SIDE
from flaxmnist.data import rows
from flaxmnist.errors import UserError, shown
from flaxmnist.runtime import files
from flaxmnist.runtime.durable import write_file
from flaxmnist.runtime.files import open_regular
from flaxmnist.runtime.memory import available_memory

# File names of the original distribution, in the order of the result of `read_all`.
STEMS = ("train-images", "train-labels", "t10k-images", "t10k-labels")
_DTYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_CODES = {np.dtype(dtype).newbyteorder("="): code for code, dtype in _DTYPES.items()}
_OPENERS: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"\xfd7": lzma.open,
}
# Numbers of dimensions: of images, gray or with channels; of labels, QMNIST's too.
IMAGES, LABELS = (3, 4), (1, 2)
# Maximum sizes in bytes: of a file (175 million images); of the content of a compressed
# file (1.4 million images); of a raw file that is read into memory instead of mapped.
MAX_BYTES, MAX_UNPACKED, MAX_IN_MEMORY = 1 << 37, 1 << 30, 1 << 28
# Of the unpacked gzip files in the cache: bytes of the smallest, and their number.
MIN_CACHED_BYTES, MAX_CACHED_FILES = 1 << 22, 16
# Bytes of each read, which fit into the cache of a processor.
_BLOCK = 1 << 20


def _spellings(directory: Path, prefix: str, stem: str) -> dict[str, str]:
    """Returns the names of a file in `directory`, by the suffix of its compression."""
    stem = stem.replace("t10k", "(?:t10k|test)")
    pattern = re.compile(rf"{prefix}{stem}[-.]idx\d-\w+(\.gz|\.xz|)")
    # Of two spellings with the same suffix, the last one here counts: the one with "-".
    names = sorted(os.listdir(directory), reverse=True)
    return {match[1]: match[0] for name in names if (match := pattern.fullmatch(name))}


def exist(directory: Path, prefix: str = "") -> bool:
    """Returns whether `directory` contains training images in an IDX file."""
    return directory.is_dir() and bool(_spellings(directory, prefix, STEMS[0]))


def find(directory: Path, prefix: str = "") -> list[Path]:
    """Returns the four IDX files in `directory`, in the order of `STEMS`.

    Args:
      directory: of the files, such as ``train-images-idx3-ubyte``, or, as some browsers
        save it, ``train-images.idx3-ubyte``, with ``.gz`` or ``.xz`` if compressed.
      prefix: what the names start with, such as ``"qmnist-"``.

    Raises:
      UserError: one of them is missing.
    """
    paths = []
    for stem in STEMS:
        if not (found := _spellings(directory, prefix, stem)):
            rank = 3 if stem.endswith("images") else 1
            raise UserError(
                f"no {prefix}{stem}-idx{rank}-ubyte (or .gz) in "
                f"{shown(str(directory))}; expected the four MNIST-format files. Set "
                "data.dir or FLAXMNIST_DATA_DIR to their directory"
            )
        paths.append(directory / found[min(found)])
    return paths


class _Adjacent:
    """Allocates uninitialized bytes, after the previous ones if there is space."""

    def __init__(self) -> None:
        self._rest = np.empty(0, np.uint8)

    def __call__(self, size: int) -> np.ndarray:
        if len(self._rest) <= size:
            # Test data are smaller than training data. Pages that are not written take
            # no memory.
            self._rest = rows.empty((size + size // 4 + 1,), np.dtype(np.uint8))
        array, self._rest = self._rest[: size + 1], self._rest[size:]
        return array


def read(
    path: Path,
    ranks: tuple[int, ...] = IMAGES,
    allocate: Callable[[int], np.ndarray] | None = None,
) -> np.ndarray:
    """Returns the array in an IDX file, raw or compressed.

    A raw file above 256 MiB, or larger than the available memory, is returned as an
    `np.memmap`: the system reads only the pages that are used, and drops them if memory
    runs short. Its numbers are big-endian, as in the file.

    Args:
      path: the file. Its content, not its name, decides whether it is compressed.
      ranks: accepted numbers of dimensions, `IMAGES` or `LABELS`.
      allocate: returns one byte more than the given number, for the array.

    Raises:
      UserError: the file is not IDX, its size is not the one in its header, its images
        are too large, or it does not fit into memory.
    """
    try:
        with open_regular(path, MAX_BYTES) as raw:
            opener = _OPENERS.get(raw.read(2))
            raw.seek(0)
            allocate = allocate or (lambda size: np.empty(size + 1, np.uint8))
            if opener is None:
                return _read_raw(path, ranks, raw, allocate)
            cached = _cached_path(raw) if opener is gzip.open else None
            if cached and (array := _read_cached(cached, ranks, allocate)) is not None:
                return array
            array = _unpack(path, ranks, raw, opener, allocate)
            if cached:
                _write_cached(cached, array)
            return array
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(
            f"{shown(str(path))} cannot be read ({error}). Download it again"
        ) from None


def _cached_path(file: io.BufferedReader) -> Path | None:
    """Returns where the content of a gzip file is cached, by its checksum and size.

    None if it is too small, or nothing is cached.
    """
    small = os.fstat(file.fileno()).st_size < MIN_CACHED_BYTES >> 8
    if small or not files.cache_enabled:
        return None
    file.seek(-8, os.SEEK_END)
    checksum, size = struct.unpack("<II", file.read(8))
    file.seek(0)
    with contextlib.suppress(UserError):  # There may be no home directory.
        return files.cache_dir() / "unpacked" / f"{checksum:08x}-{size}"
    return None


def _read_cached(
    path: Path, ranks: tuple[int, ...], allocate: Callable[[int], np.ndarray]
) -> np.ndarray | None:
    """Returns the content of a gzip file that was cached, None if it is not whole."""
    with contextlib.suppress(UserError, OSError):
        array = read(path, ranks, allocate)
        if path.name == _cached_name(array):
            return array
    return None


def _write_cached(path: Path, array: np.ndarray) -> None:
    fits = array.dtype == np.uint8 and MIN_CACHED_BYTES <= array.nbytes <= MAX_IN_MEMORY
    # A file of several parts ends with the checksum of the last one.
    if not fits or path.name != _cached_name(array):
        return
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, _header(array.dtype, array.shape), array.data)
        files.delete_oldest(path.parent, "*", MAX_CACHED_FILES)


def _cached_name(array: np.ndarray) -> str:
    header = _header(array.dtype, array.shape)
    checksum = zlib.crc32(array.data, zlib.crc32(header))
    return f"{checksum:08x}-{len(header) + array.nbytes}"


def _read_raw(
    path: Path,
    ranks: tuple[int, ...],
    file: io.BufferedIOBase,
    allocate: Callable[[int], np.ndarray],
) -> np.ndarray:
    dtype, shape = _read_header(path, ranks, file)
    offset, size = file.tell(), math.prod(shape) * dtype.itemsize
    if (found := os.fstat(file.fileno()).st_size - offset) != size:
        raise _wrong_size(path, f"{found:,}", size)
    if size > min(MAX_IN_MEMORY, available_memory()):
        return np.memmap(file, dtype, "r", offset, shape)
    return _to_array(path, file, dtype, shape, allocate(size))


def _unpack(
    path: Path,
    ranks: tuple[int, ...],
    file: io.BufferedIOBase,
    opener: Callable[..., Any],
    allocate: Callable[[int], np.ndarray],
) -> np.ndarray:
    with opener(file) as unpacked:
        dtype, shape = _read_header(path, ranks, unpacked)
        size = math.prod(shape) * dtype.itemsize
        if size > MAX_UNPACKED:
            raise UserError(
                f"{shown(str(path))} announces {size:,} bytes; expected at most "
                f"{MAX_UNPACKED:,} bytes in a compressed file. Unpack it with gunzip "
                "or unxz"
            )
        # Compression enlarges random data by less than this. A larger file contains
        # padding, which could take forever to read.
        if os.fstat(file.fileno()).st_size > size + size // 100 + (1 << 16):
            raise _wrong_size(path, "more", size)
        if size > (free := available_memory()):
            raise UserError(
                f"{shown(str(path))} needs {size:,} bytes of memory; {free:,} are "
                "available. Unpack it with gunzip or unxz: a raw file can stay on disk"
            )
        return _to_array(path, unpacked, dtype, shape, allocate(size))


def _read_header(
    path: Path, ranks: tuple[int, ...], file: io.BufferedIOBase
) -> tuple[np.dtype, tuple[int, ...]]:
    """Returns the dtype and shape in the header of an IDX file."""
    magic = file.read(4)
    rank = magic[3] if magic[:2] == b"\0\0" and len(magic) == 4 else 0
    header = file.read(4 * rank) if rank in ranks else b""
    if rank not in ranks or magic[2] not in _DTYPES or len(header) < 4 * rank:
        expected = " or ".join(bytes((0, 0, 8, rank)).hex() for rank in ranks)
        raise UserError(
            f"{shown(str(path))} starts with {magic.hex() or 'nothing'}; expected "
            f"{expected}, the IDX magic number of "
            f"{'images' if ranks == IMAGES else 'labels'}, or that of another type of "
            "numbers. Download the file again"
        )
    shape = struct.unpack(f">{rank}I", header)
    sides, most = shape[1:], (MAX_SIDE, MAX_SIDE, MAX_CHANNELS)
    if ranks == IMAGES and not all(
        0 < n <= m for n, m in zip(sides, most, strict=False)
    ):
        raise UserError(
            f"{shown(str(path))} contains images of {'×'.join(map(str, sides))}; "
            f"expected at most {'×'.join(map(str, most))}"
        )
    return np.dtype(_DTYPES[magic[2]]), shape


def _to_array(
    path: Path,
    file: io.BufferedIOBase,
    dtype: np.dtype,
    shape: tuple[int, ...],
    content: np.ndarray,
) -> np.ndarray:
    """Reads an array into bytes, which are one more: a longer file is an error."""
    size, found = math.prod(shape) * dtype.itemsize, 0
    # A damaged header can announce any size. Only pages that are written take memory.
    while count := file.readinto(content[found : found + _BLOCK].data):
        found += count
    if found != size:
        raise _wrong_size(path, "more" if found > size else f"{found:,}", size)
    array = content[:size].view(dtype).reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)


def _wrong_size(path: Path, found: str, size: int) -> UserError:
    return UserError(
        f"{shown(str(path))} contains {found} bytes of data; its header announces "
        f"{size:,}. Download the file again"
    )


def write(path: Path, parts: Iterable[np.ndarray]) -> None:
    """Writes arrays, joined along their first dimension, as one IDX file.

    Args:
      path: the file.
      parts: at least one array, all of the same dtype and, but for the first dimension,
        the same shape.
    """
    with path.open("wb") as file:
        count = 0
        for part in parts:
            if not file.tell():
                file.write(bytes(4 + 4 * part.ndim))
            file.write(part.astype(part.dtype.newbyteorder(">"), copy=False).tobytes())
            count += len(part)
        file.seek(0)
        file.write(_header(part.dtype, (count, *part.shape[1:])))


def _header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    code, rank = _CODES[dtype], len(shape)
    return bytes((0, 0, code, rank)) + struct.pack(f">{rank}I", *shape)


def read_pair(
    images: Path, labels: Path, allocate: Callable[[int], np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images and labels of one split; QMNIST's labels are `[count, 8]`.

    `allocate` is for the images; see :func:`read`.

    Raises:
      UserError: a file is damaged, or the numbers of images and labels differ.
    """
    pair = read(images, allocate=allocate), read(labels, LABELS)
    if len(pair[0]) != len(pair[1]):
        raise UserError(
            f"{shown(str(images))} contains {len(pair[0]):,} images, and {labels.name} "
            f"{len(pair[1]):,} labels; expected equal numbers"
        )
    return pair


def read_all(paths: list[Path]) -> list[np.ndarray]:
    """Returns train images, train labels, test images, test labels.

    The images are adjacent in memory, so that :func:`flaxmnist.data.rows.joined` need
    not copy them. The arrays cannot be written.

    Raises:
      UserError: a file is damaged, or the numbers of images and labels differ.
    """
    images, labels, test_images, test_labels = paths
    allocate = _Adjacent()
    arrays = [
        *read_pair(images, labels, allocate),
        *read_pair(test_images, test_labels, allocate),
    ]
    for array in arrays:
        array.flags.writeable = False  # A feed may share its memory.
    return arrays
