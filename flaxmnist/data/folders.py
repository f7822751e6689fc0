"""Image directories: one directory per class, with or without one per split."""

import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path

from flaxmnist.data.encoded import Example, Examples, decoders
from flaxmnist.data.raw import Raw
from flaxmnist.errors import UserError, shown
from flaxmnist.runtime.files import read_bytes

# Names of the directories, or the ends of the names of the files, of each split.
ALIASES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
_MAX_FILE_BYTES = 1 << 24


def is_image_folder(folder: Path) -> bool:
    """Returns whether a directory contains directories of images."""
    return any(
        next(_images(path), None)
        for split in _split_folders(_root(folder)).values()
        for path in _listed(split)
        if path.is_dir()
    )


def read(folder: Path) -> Raw:
    """Returns the images in ``train/<class>/``, ``test/<class>/``, or in ``<class>/``.

    Hidden files and directories, and files without the suffix of an image, are left
    out. A class is named after its directory; classes are in order of their names, and
    numbers in order of their values.

    Raises:
      UserError: there are no class directories with training images.
    """
    root = _root(folder)
    paths = _split_folders(root)
    found = {split: _classes(path) for split, path in paths.items()}
    warnings = [
        f"{shown(str(path))} has no images in directories named after classes and is "
        "left out."
        for split, path in paths.items()
        if not found[split]
    ]
    warnings += [
        f"{shown(str(path))} contains no images and is left out."
        for path in _listed(paths["train"])
        if path.is_dir() and path.name not in found["train"]
    ]
    warnings += [
        f"{shown(str(paths['train'] / name))} contains directories of images: all of "
        "them are examples of this class."
        for name, files in found["train"].items()
        if len({file.parent for file in files}) > 1
    ]
    if paths["train"] != root:
        warnings += [
            f"{shown(str(path))} is not one of the splits and is left out."
            for path in _folders(root)
            if path not in paths.values() and next(_images(path), None)
        ]
    names = sorted(set().union(*found.values()), key=natural)
    if {name.lower() for name in names} <= {*sum(ALIASES.values(), ())}:
        if trained := [name for name in names if name.lower() in ALIASES["train"]]:
            raise _no_classes(root / trained[0])
        raise UserError(
            f"{shown(str(root))} contains the splits {', '.join(map(shown, names))}; "
            "expected a directory 'train', too"
        )
    if not found["train"]:
        raise _no_classes(paths["train"])
    splits: dict[str, Examples] = {
        split: functools.partial(_examples, classes, names)
        for split, classes in found.items()
        if classes
    }
    return Raw(
        source="folder",
        files=tuple(
            path
            for classes in found.values()
            for name in sorted(classes)
            for path in classes[name]
        ),
        splits=decoders(splits),
        class_names=tuple(names),
        warning="\n".join(warnings) or None,
    )


def _no_classes(folder: Path) -> UserError:
    return UserError(
        f"{shown(str(folder))} contains no images in directories named after classes; "
        "expected one directory per class"
    )


def natural(name: str) -> tuple[bool, int, str]:
    """Sorts numbers by value, before other names."""
    is_number = name.isascii() and name.isdigit() and len(name) < 19
    return not is_number, int(name) if is_number else 0, name


def _root(folder: Path) -> Path:
    """Returns the directory within `folder` if that contains a single one only.

    Unpacked archives often have such a directory. A directory of images is a class.
    """
    inside = _folders(folder)
    if len(inside) == 1 and _folders(inside[0]) and not _has_images(inside[0]):
        return _root(inside[0])
    return folder


def _split_folders(folder: Path) -> dict[str, Path]:
    """Returns the directory of each split; `folder` itself if it has no such ones.

    If it contains directories, a name such as ``seg_train`` or ``test_set`` names a
    split, too. A directory ``train`` of images may be a class, such as the vehicle.
    """
    inside = {path.name.lower(): path for path in _folders(folder)}
    splits: dict[str, Path] = {}
    for split, names in ALIASES.items():
        pattern = re.compile(rf"(.*[-_. ])?({'|'.join(names)})([-_. ].*)?")
        exact = [inside[name] for name in names if name in inside]
        similar = [
            path
            for name, path in inside.items()
            if pattern.fullmatch(name) and _folders(path)
        ]
        if exact or len(similar) == 1:
            splits[split] = (exact or similar)[0]
    is_class = list(splits) == ["train"] and not _folders(splits["train"])
    return splits if "train" in splits and not is_class else {"train": folder}


def _folders(folder: Path) -> list[Path]:
    return [path for path in _listed(folder) if path.is_dir()]


def _has_images(folder: Path) -> bool:
    return any(path.name.lower().endswith(_SUFFIXES) for path in _listed(folder))


def _classes(folder: Path) -> dict[str, list[Path]]:
    """Returns the image files of each class directory that has some."""
    found = {
        path.name: list(map(Path, sorted(_images(path))))
        for path in _listed(folder)
        if path.is_dir()
    }
    return {name: files for name, files in found.items() if files}


def _images(folder: Path) -> Iterator[str]:
    """Yields the paths of the images in a directory and in those within."""
    for base, inside, names in os.walk(folder):
        inside[:] = [name for name in inside if not _is_hidden(name)]
        for name in names:
            if not _is_hidden(name) and name.lower().endswith(_SUFFIXES):
                yield os.path.join(base, name)


def _listed(folder: Path) -> list[Path]:
    """Returns what is in a directory, in order, but hidden files and directories."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise UserError(
            f"{shown(str(folder))} cannot be read ({error.strerror})"
        ) from None
    return [folder / name for name in names if not _is_hidden(name)]


def _is_hidden(name: str) -> bool:
    # An archive from macOS contains __MACOSX, copies of every name.
    return name.startswith(".") or name == "__MACOSX"


def _examples(classes: dict[str, list[Path]], names: list[str]) -> Iterator[Example]:
    for label, name in enumerate(names):
        for path in classes.get(name, ()):
            try:
                content = read_bytes(path, _MAX_FILE_BYTES)
            except OSError as error:
                raise UserError(
                    f"{shown(str(path))} cannot be read ({error.strerror})"
                ) from None
            yield Example(shown(str(path)), content, label)
