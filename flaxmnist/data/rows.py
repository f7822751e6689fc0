"""Gathers rows of arrays, in memory or on disk, with several threads."""

import concurrent.futures
import itertools
import math
import mmap
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from flaxmnist.errors import UserError, shown

# Each image is a separate read, and disks are faster with many reads in flight.
THREADS = 16
# Size in bytes of each read of an array that is read whole and in order.
SLAB_BYTES = 1 << 24
# XLA uses an array of the host without a copy if its address is a multiple of this.
ALIGNMENT = 64
_threads = concurrent.futures.ThreadPoolExecutor(THREADS, "flaxmnist-read")
# The arrays that `empty` allocated, by id, while they are in use.
_memories: weakref.WeakValueDictionary[int, np.ndarray] = weakref.WeakValueDictionary()
Read = Callable[[np.ndarray, np.ndarray], Any]


class _File:
    """The rows of a mapped array, read from its file by system calls.

    If a file becomes shorter, reading its mapping would end the process with SIGBUS; a
    system call raises an error.

    Args:
      array: a mapped array, or a slice of one.
      shuffled: whether rows are read in random order.
    """

    def __init__(self, array: Any, shuffled: bool):
        self._name, self._row_bytes = array.filename, array.nbytes // len(array)
        mapping = np.frombuffer(array._mmap, np.uint8)
        begin = array.offset - array.offset % mmap.ALLOCATIONGRANULARITY
        self._offset = begin + array.ctypes.data - mapping.ctypes.data
        self._file = os.open(self._name, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        # Without this, the system would read ahead 30 times as much as needed.
        if shuffled and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_RANDOM)

    def take(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Reads rows into `out`, consecutive rows with one system call."""
        starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1).tolist()
        for start, stop in itertools.pairwise([*starts, len(rows)]):
            position = self._offset + int(rows[start]) * self._row_bytes
            left = out[start:stop].data.cast("B")
            while left:
                try:
                    count = os.preadv(self._file, [left], position)
                except OSError as error:
                    raise self._failure(f"cannot be read ({error.strerror})") from None
                if count == 0:
                    raise self._failure("became shorter while it was in use")
                left, position = left[count:], position + count

    def _failure(self, reason: str) -> UserError:
        return UserError(
            f"{shown(self._name)} {reason}. Restore it, then run the same command "
            "again to resume"
        )


def is_mapped(array: Any) -> bool:
    """Returns whether the rows of an array can be read from its mapped file."""
    whole_rows = isinstance(array, np.memmap) and array.flags.c_contiguous
    return bool(
        whole_rows and array.mode == "r" and array.filename and hasattr(os, "preadv")
    )


def reader(array: Any, shuffled: bool) -> Read:
    """Returns a function that writes rows of an array to another array."""
    if is_mapped(array):
        return _File(array, shuffled).take
    return lambda rows, out: np.take(array, rows, axis=0, out=out, mode="clip")


def slabs(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yields an array in consecutive parts, in memory, of about `SLAB_BYTES` each."""
    read = reader(array, shuffled=False)
    count = max(1, SLAB_BYTES * len(array) // max(array.nbytes, 1))
    for start in range(0, len(array), count):
        rows = np.arange(start, min(start + count, len(array)))
        out = np.empty((len(rows), *array.shape[1:]), array.dtype)
        read(rows, out)
        yield out


def joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Returns arrays, joined along their first dimension, in memory.

    Arrays that are adjacent in memory of `empty` are not copied. The address of a copy
    is a multiple of `ALIGNMENT`.
    """
    shape = sum(map(len, arrays)), *arrays[0].shape[1:]
    dtype, memory = arrays[0].dtype, arrays[0].base
    # Only memory of `empty` is shared: an array of the user could change later.
    if _memories.get(id(memory)) is memory is not None and _are_adjacent(arrays):
        offset = arrays[0].ctypes.data - memory.ctypes.data
        return np.ndarray(shape, dtype, memory, offset)
    whole, start = empty(shape, dtype), 0
    for array in arrays:
        stop = start + len(array)
        reader(array, shuffled=False)(np.arange(len(array)), whole[start:stop])
        start = stop
    return whole


def _are_adjacent(arrays: Sequence[np.ndarray]) -> bool:
    """Returns whether each array begins where the one before it ends, in memory."""
    return all(array.flags.c_contiguous for array in arrays) and all(
        before.base is after.base
        and (before.dtype, before.shape[1:]) == (after.dtype, after.shape[1:])
        and before.ctypes.data + before.nbytes == after.ctypes.data
        for before, after in itertools.pairwise(arrays)
    )


def empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Returns an uninitialized array whose address is a multiple of `ALIGNMENT`."""
    size = math.prod(shape) * dtype.itemsize
    content = np.empty(size + ALIGNMENT, np.uint8)
    _memories[id(content)] = content
    first = -content.ctypes.data % ALIGNMENT
    return content[first : first + size].view(dtype).reshape(shape)


def gather(array: np.ndarray, read: Read, rows: np.ndarray) -> np.ndarray:
    """Returns `array[rows]`, with row 0 for padding (negative indices)."""
    out = np.empty((rows.size, *array.shape[1:]), array.dtype)
    found = np.maximum(rows.ravel(), 0)
    list(_threads.map(read, *(np.array_split(each, THREADS) for each in (found, out))))
    return out.reshape(*rows.shape, *array.shape[1:])
