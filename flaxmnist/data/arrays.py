"""NumPy's .npz files, read without loading them whole and without pickles."""

import contextlib
import functools
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from flaxmnist.data import idx
from flaxmnist.data.raw import Chunk, Raw, as_text
from flaxmnist.errors import UserError, shown
from flaxmnist.runtime.files import open_regular

# Names of the arrays of images and labels of each split: those of Keras, of MedMNIST,
# and of a single set of examples.
_NAMES = {
    "train": (
        ("x_train", "y_train"),
        ("train_images", "train_labels"),
        ("train_x", "train_y"),
        ("x", "y"),
        ("images", "labels"),
        ("data", "target"),
        ("data", "labels"),
    ),
    "validation": (
        ("x_validation", "y_validation"),
        ("x_valid", "y_valid"),
        ("x_val", "y_val"),
        ("validation_images", "validation_labels"),
        ("val_images", "val_labels"),
    ),
    "test": (
        ("x_test", "y_test"),
        ("test_images", "test_labels"),
        ("test_x", "test_y"),
    ),
}
_CLASS_NAMES = ("class_names", "classes", "label_names")
# About the size in bytes of a chunk, and the maximum of an array that is read whole.
_CHUNK_BYTES, _MAX_SMALL = 1 << 24, 1 << 30


def read(path: Path) -> Raw:
    """Returns the images in an .npz file.

    Its arrays are named ``x_train``, ``y_train``, ``x_test``, ``y_test``, as in Keras'
    mnist.npz, or ``train_images``, ``train_labels``, …; or ``x`` and ``y``, or
    ``images`` and ``labels``. ``class_names`` and a validation split are optional.

    Raises:
      UserError: the file is not an .npz file of such arrays.
    """
    with opened(path) as archive:
        members = {
            name.removesuffix(".npy").lower(): name
            for name in archive.namelist()
            if name.endswith(".npy")
        }
        pairs = {}
        for split, names in _NAMES.items():
            for images, labels in names:
                if images in members and labels in members:
                    pairs[split] = members[images], members[labels]
                    break
        if "train" not in pairs:
            raise UserError(
                f"{shown(str(path))} contains the arrays {', '.join(sorted(members))}; "
                "expected x_train, y_train, x_test and y_test, or train_images, "
                "train_labels, test_images and test_labels"
            )
        class_names = None
        for name in _CLASS_NAMES:
            if name in members:
                found = as_text(_array(archive, members[name], path).ravel())
                class_names = tuple(map(str, found.tolist()))
    return Raw(
        source="npz",
        files=(path,),
        splits={
            split: functools.partial(_chunks, path, *pair)
            for split, pair in pairs.items()
        },
        class_names=class_names,
    )


@contextlib.contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Opens an .npz file; every error within becomes a UserError about it."""
    try:
        with (
            open_regular(path, idx.MAX_BYTES) as file,
            zipfile.ZipFile(file) as archive,
        ):
            yield archive
    except UserError:
        raise
    # Damaged archives raise many kinds of errors.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{shown(str(path))} cannot be read as an .npz file ({reason[:160]})"
        ) from None


def _header(
    file: IO[bytes], member: zipfile.ZipInfo, path: Path
) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Reads the header of an array: shape, whether in Fortran order, and dtype."""
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise UserError(
            f"the array {member.filename} in {shown(str(path))} contains Python "
            "objects, which could run code; expected numbers or texts. Save it as one "
            "array of them, such as np.stack(images)"
        )
    size = math.prod(shape) * dtype.itemsize
    if size != member.file_size - file.tell():
        raise UserError(
            f"the array {member.filename} in {shown(str(path))} announces {size:,} "
            f"bytes and has {member.file_size - file.tell():,}. Write the file again"
        )
    return shape, fortran, dtype


def _array(archive: zipfile.ZipFile, name: str, path: Path) -> np.ndarray:
    """Returns an array that must be small, such as labels."""
    member = archive.getinfo(name)
    if member.file_size > _MAX_SMALL:
        raise UserError(
            f"the array {name} in {shown(str(path))} has {member.file_size:,} bytes; "
            f"expected at most {_MAX_SMALL:,}"
        )
    with archive.open(member) as file:
        shape, fortran, dtype = _header(file, member, path)
        array = np.frombuffer(file.read(), dtype)
        return array.reshape(shape, order="F" if fortran else "C")


def _chunks(path: Path, images: str, labels: str) -> Iterator[Chunk]:
    with opened(path) as archive:
        classes = _array(archive, labels, path)
        member = archive.getinfo(images)
        with archive.open(member) as file:
            shape, fortran, dtype = _header(file, member, path)
            if (
                not classes.ndim
                or shape[:1] != classes.shape[:1]
                or not math.prod(shape)
            ):
                raise UserError(
                    f"the arrays {images} and {labels} in {shown(str(path))} have the "
                    f"shapes {list(shape)} and {list(classes.shape)}; expected the "
                    "same number of examples, at least one"
                )
            if fortran:
                yield _array(archive, images, path), classes
                return
            count = max(1, _CHUNK_BYTES * len(classes) // member.file_size)
            for start in range(0, len(classes), count):
                part = classes[start : start + count]
                size = len(part) * dtype.itemsize * math.prod(shape[1:])
                content = np.frombuffer(file.read(size), dtype)
                yield content.reshape(len(part), *shape[1:]), part
