"""Recognizes the form of a user's data files by their content."""

import functools
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

from flaxmnist.data import arrays, cifar, folders, parquet, tables
from flaxmnist.data.raw import Raw
from flaxmnist.errors import UserError, shown
from flaxmnist.runtime.files import open_regular

Reader = Callable[[], Raw]
_MAX_FILE_BYTES = 1 << 40
# What a file of another form starts with, and what to do.
_OTHER = {
    b"\x93NUMPY": "a single array; save images and labels with numpy.savez_compressed",
    b"PK": "a damaged .npz file or archive; write or download it again",
    b"\0\0": "an IDX file; name the directory of the four files instead",
    b"Rar!": "an archive; unpack it",
    b"7z\xbc\xaf": "an archive; unpack it",
    b"\x1f\x8b": "a compressed file; unpack it",
    b"\x89HDF": "an HDF5 file; save its arrays with numpy.savez_compressed",
    b"\x89PNG": "an image; name the directory of the images instead",
    b"\xff\xd8": "an image; name the directory of the images instead",
}


def reader(path: Path, source: str | None = None) -> tuple[str, Reader] | None:
    """Returns the form of the data at `path`, and a function that reads them.

    Args:
      path: a file or a directory.
      source: one of `FORMS`; None to recognize the form.

    Raises:
      UserError: the path does not exist, or contains several data sets.
    """
    for name in FORMS if source is None else (source,):
        if found := FORMS[name](path):
            return name, found
    return None


def explain(path: Path) -> str:
    """Returns what a file is that has none of the forms, and what to do."""
    start = _start(path)
    if zipfile.is_zipfile(path) or start[257:262] == b"ustar":
        return "an archive; unpack it"
    for magic, what in _OTHER.items():
        if start.startswith(magic):
            return what
    return "of an unknown form; expected a CSV, .npz or Parquet file, or a directory"


def _start(path: Path) -> bytes:
    """Returns the first bytes of a file; nothing of a directory."""
    if path.is_dir():
        return b""
    try:
        with open_regular(path, _MAX_FILE_BYTES) as file:
            return file.read(1 << 12)
    except OSError as error:
        raise UserError(
            f"{shown(str(path))} cannot be read ({error.strerror})"
        ) from None


def _npz(path: Path) -> Reader | None:
    if path.is_dir():
        found = sorted(path.glob("[!.]*.npz"))
        if len(found) > 1:
            names = ", ".join(file.name for file in found)
            raise UserError(
                f"{shown(str(path))} contains several data sets: {names}. Set data.dir "
                "to one of these files"
            )
        return _npz(found[0]) if found else None
    is_npz = _start(path)[:2] == b"PK" and zipfile.is_zipfile(path)
    if is_npz:
        with arrays.opened(path) as archive:
            is_npz = any(name.endswith(".npy") for name in archive.namelist())
    return functools.partial(arrays.read, path) if is_npz else None


def _csv(path: Path) -> Reader | None:
    if path.is_dir():
        found = _split_files(path, ".csv") or _split_files(path, ".csv.gz")
        return functools.partial(tables.read, found) if found else None
    start = _start(path)
    is_table = b"\0" not in start and start.count(b",") + start.count(b";") + (
        start.count(b"\t")
    )
    is_packed = start[:2] == b"\x1f\x8b" and path.name.endswith(".csv.gz")
    if is_table or is_packed:
        return functools.partial(tables.read, {"train": path})
    return None


def _split_files(folder: Path, suffix: str) -> dict[str, Path]:
    """Returns files such as ``train.csv`` or ``mnist_train.csv`` by split."""
    found: dict[str, Path] = {}
    files = [path for path in sorted(folder.glob(f"*{suffix}")) if path.name[0] != "."]
    for split, names in folders.ALIASES.items():
        pattern = re.compile(rf"(.*[-_. ])?({'|'.join(names)}){re.escape(suffix)}")
        matches = [path for path in files if pattern.fullmatch(path.name.lower())]
        if len(matches) > 1:
            raise UserError(
                f"{shown(str(folder))} contains {matches[0].name} and "
                f"{matches[1].name}; expected one file of the {split} split. Set "
                "data.dir to a directory with one data set"
            )
        if matches:
            found[split] = matches[0]
    if "train" not in found:
        return {"train": files[0]} if len(files) == 1 else {}
    return found


def _parquet(path: Path) -> Reader | None:
    if path.is_dir():
        below = [path, path / "data", *filter(Path.is_dir, sorted(path.glob("[!.]*")))]
        for folder in below:
            if found := _shards(folder):
                return functools.partial(parquet.read, found)
        files = sorted(path.glob("[!.]*.parquet"))
        # Hugging Face numbers the files in the directory of a split.
        is_one = len(files) == 1 or all(file.stem.isdigit() for file in files)
        if files and is_one:
            return functools.partial(parquet.read, {"train": files})
        return None
    if _start(path)[:4] == b"PAR1":
        return functools.partial(parquet.read, {"train": [path]})
    return None


def _shards(folder: Path) -> dict[str, list[Path]]:
    """Returns files such as ``train-00000-of-00002.parquet`` by split."""
    found: dict[str, list[Path]] = {}
    files = sorted(folder.glob("[!.]*.parquet"))
    for split, names in folders.ALIASES.items():
        for name in names:
            named = re.compile(rf"({name}.*|.*[-_. ]{name}([-_. \d].*)?)\.parquet")
            paths = [path for path in files if named.fullmatch(path.name.lower())]
            paths = paths or sorted(folder.glob(f"{name}/[!.]*.parquet"))
            if paths:
                found.setdefault(split, paths)
                count = re.search(r"-of-(\d+)\.parquet", paths[0].name)
                if count and int(count[1]) != len(paths):
                    raise UserError(
                        f"{shown(str(folder))} contains {len(paths)} Parquet files of "
                        f"the {split} split; expected {int(count[1])}. Download all"
                    )
    return found if "train" in found else {}


def _cifar(path: Path) -> Reader | None:
    found = cifar.find(path) if path.is_dir() else None
    return functools.partial(cifar.read, found) if found else None


def _folder(path: Path) -> Reader | None:
    is_folder = path.is_dir() and folders.is_image_folder(path)
    return functools.partial(folders.read, path) if is_folder else None


# In the order in which they are recognized: a directory of images may contain tables.
FORMS: dict[str, Callable[[Path], Reader | None]] = {
    "npz": _npz,
    "parquet": _parquet,
    "cifar": _cifar,
    "folder": _folder,
    "csv": _csv,
}
