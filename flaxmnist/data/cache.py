"""A cache of converted data sets, on disk, by the content of their files."""

import contextlib
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flaxmnist.data import idx
from flaxmnist.data.draw import Draw
from flaxmnist.data.raw import Chunk, Pixels, Raw, one_column, to_classes
from flaxmnist.data.rows import slabs
from flaxmnist.errors import UserError, shown
from flaxmnist.runtime.files import (
    cache_dir,
    locked,
    open_regular,
    partial_folder,
    read_json,
)

_RECORD = "record.json"
# Changes with every change of the conversion, so that older results are not used.
_VERSION = 4


class Arrays(NamedTuple):
    """A converted data set.

    Attributes:
      splits: split → images, uint8 `[count, height, width]` or with channels, and
        labels, from 0 without gaps; in memory if they are small.
      class_names: a name per class.
    """

    splits: dict[str, tuple[np.ndarray, np.ndarray]]
    class_names: tuple[str, ...]


def convert(raw: Raw, name: str, draw: Draw | None = None) -> Arrays:
    """Returns the arrays of a data set, converted once and then read from the cache.

    Images are converted in chunks, and large arrays are mapped, so that they need not
    fit into memory.

    Args:
      raw: the data set.
      name: of the data, for errors.
      draw: how to draw the splits that the files do not have; None to leave them out.

    Raises:
      UserError: the content is damaged or of another kind, or the cache cannot be
        written.
    """
    folder = cache_dir() / "converted" / _key(raw, draw)
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, UserError):
        return _read(folder)
    with entry(folder) as partial:
        _write(partial, raw, name, draw)
    return _read(folder)


@contextlib.contextmanager
def entry(folder: Path) -> Iterator[Path]:
    """Yields a directory for incomplete files, which then becomes `folder`.

    Raises:
      UserError: the cache cannot be written.
    """
    try:
        with partial_folder(folder.parent) as partial:
            yield partial
            with locked(folder.parent):
                # Another process may be reading a complete entry: of the same files, so
                # its content is the same.
                if not _is_whole(folder):
                    shutil.rmtree(folder, ignore_errors=True)
                    os.rename(partial, folder)
    except OSError as error:
        raise UserError(
            f"{shown(str(folder.parent))} cannot be written "
            f"({error.strerror or error}). Set "
            "FLAXMNIST_CACHE_DIR to a writable directory"
        ) from None


def _key(raw: Raw, draw: Draw | None) -> str:
    """Returns the SHA-256 of the files, their names, and the conversion."""
    conversion = _VERSION, raw.source, raw.options, raw.class_names, draw
    digest = hashlib.sha256(repr(conversion).encode())
    base = os.path.commonpath({os.path.dirname(path) for path in raw.files})
    for path in raw.files:
        try:
            with open_regular(path, idx.MAX_BYTES) as file:
                content = hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            raise UserError(
                f"{shown(str(path))} cannot be read ({error.strerror})"
            ) from None
        digest.update(os.fsencode(path)[len(os.fsencode(base)) :] + b"\0" + content)
    return digest.hexdigest()[:32]


def _write(folder: Path, raw: Raw, name: str, draw: Draw | None) -> None:
    pixels = Pixels(name)
    texts = {
        split: _write_images(folder, split, _reading(chunks, name), pixels)
        for split, chunks in raw.splits.items()
    }
    labels, names = to_classes(texts, raw.class_names, name)
    if draw is not None and (chosen := draw.rows(labels)):
        whole = folder / "whole"
        os.rename(folder / "train-images", whole)
        for split, mask in chosen.items():
            idx.write(folder / f"{split}-images", _rows(idx.read(whole), mask))
        whole.unlink()
        labels |= {split: labels["train"][mask] for split, mask in chosen.items()}
    for split, part in labels.items():
        idx.write(folder / f"{split}-labels", [part])
    record = {"crc32": _checksums(_read_arrays(folder, labels)), "class_names": names}
    (folder / _RECORD).write_text(json.dumps(record), encoding="utf-8")


def _reading(chunks: Callable[[], Iterator[Chunk]], name: str) -> Iterator[Chunk]:
    """Yields chunks; an error of the system is not one of the cache."""
    try:
        yield from chunks()
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error.strerror or error})") from None


def _write_images(
    folder: Path, split: str, chunks: Iterator[Chunk], pixels: Pixels
) -> np.ndarray:
    """Writes the images of a split; returns their labels as in the files."""
    labels = []

    def images() -> Iterator[np.ndarray]:
        for part, its_labels in chunks:
            labels.append(one_column(its_labels, pixels.name))
            yield pixels(part)
        if not labels:
            raise UserError(f"{pixels.name} contains no {split} examples")

    idx.write(folder / f"{split}-images", images())
    return np.concatenate(labels)


def _rows(images: np.ndarray, mask: np.ndarray) -> Iterator[np.ndarray]:
    start = 0
    for part in slabs(images):
        yield part[mask[start : start + len(part)]]
        start += len(part)


def _read(folder: Path) -> Arrays:
    record = read_json(folder / _RECORD)
    arrays = _read_arrays(folder, record["crc32"])
    if _checksums(arrays) != record["crc32"]:
        raise ValueError
    return Arrays(arrays, tuple(record["class_names"]))


def _is_whole(folder: Path) -> bool:
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, UserError):
        _read(folder)
        return True
    return False


def _read_arrays(
    folder: Path, splits: Iterable[str]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {
        split: (
            idx.read(folder / f"{split}-images"),
            idx.read(folder / f"{split}-labels", idx.LABELS),
        )
        for split in splits
    }


def _checksums(
    arrays: dict[str, tuple[np.ndarray, np.ndarray]],
) -> dict[str, list[int]]:
    return {
        split: [_checksum(array) for array in pair] for split, pair in arrays.items()
    }


def _checksum(array: np.ndarray) -> int:
    crc = 0
    for part in slabs(array):
        crc = zlib.crc32(np.ascontiguousarray(part).data, crc)
    return crc
