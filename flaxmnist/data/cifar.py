"""CIFAR-10 as its authors publish it: in binary files, or as Python pickles."""

import functools
import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from flaxmnist.data.raw import Chunk, Raw
from flaxmnist.errors import UserError, shown
from flaxmnist.runtime.files import read_bytes

_CLASS_NAMES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
_SHAPE, _PIXELS = (3, 32, 32), 3_072
_MAX_FILE_BYTES = 1 << 28
_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))


def find(folder: Path) -> Path | None:
    """Returns the directory of CIFAR-10's files in or below `folder`, if any."""
    for name in ("", "cifar-10-batches-bin", "cifar-10-batches-py"):
        if any((folder / name / f"test_batch{end}").is_file() for end in ("", ".bin")):
            return folder / name
    return None


def read(folder: Path) -> Raw:
    """Returns the images of CIFAR-10, from ``data_batch_1.bin`` … or the same pickles.

    Raises:
      UserError: a file is missing or damaged, or a pickle contains other objects than
        lists, dictionaries and arrays.
    """
    is_binary = (folder / "test_batch.bin").is_file()
    parse, end = (_parse_binary, ".bin") if is_binary else (_parse_pickle, "")
    paths = {
        "train": [folder / f"{name}{end}" for name in _TRAIN],
        "test": [folder / f"test_batch{end}"],
    }

    def chunks(split: str) -> Iterator[Chunk]:
        for path in paths[split]:
            try:
                images, labels = parse(read_bytes(path, _MAX_FILE_BYTES))
            except UserError:
                raise
            # A damaged pickle raises many kinds of errors.
            except Exception as error:
                reason = getattr(error, "strerror", None) or error
                raise UserError(
                    f"{shown(str(path))} cannot be read as CIFAR-10 ({reason}); "
                    "download the data set again"
                ) from None
            yield images.reshape(-1, *_SHAPE), labels

    return Raw(
        source="cifar",
        files=tuple(path for files in paths.values() for path in files),
        splits={split: functools.partial(chunks, split) for split in paths},
        class_names=_CLASS_NAMES,
    )


def _parse_binary(content: bytes) -> Chunk:
    records = np.frombuffer(content, np.uint8).reshape(-1, 1 + _PIXELS)
    return records[:, 1:], records[:, 0]


class _Array:
    """Stands for an array while a pickle is read; NumPy itself is never called."""

    value: np.ndarray

    def __setstate__(self, state: Any) -> None:
        _, shape, _, _, content = state
        self.value = np.frombuffer(content, np.uint8).reshape(shape)


class _DType:
    """Stands for the dtype of an array, uint8."""

    def __setstate__(self, state: Any) -> None:
        pass


_STAND_INS: dict[str, Callable[..., Any]] = {
    "_reconstruct": lambda *_: _Array(),
    "ndarray": lambda *_: _Array(),
    "dtype": lambda *_: _DType(),
}


class _Unpickler(pickle.Unpickler):
    """Reads lists, dictionaries and uint8 arrays; refuses every other object."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "numpy" and name in _STAND_INS:
            return _STAND_INS[name]
        if (module, name) == ("_codecs", "encode"):
            return lambda text, encoding: text.encode("latin1")
        raise UserError(
            f"a pickle of CIFAR-10 contains {shown(f'{module}.{name}')}, which could "
            "run code; it was not read. Download the data set again"
        )


def _parse_pickle(content: bytes) -> Chunk:
    found = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    return found[b"data"].value.reshape(-1, _PIXELS), np.array(found[b"labels"])
