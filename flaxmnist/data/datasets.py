"""Loads a data set by its name, or from a user's files, from one of several sources."""

import dataclasses
import difflib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from flaxmnist import options
from flaxmnist.core import mnist
from flaxmnist.data import download, emnist, folders, forms, idx, tfds
from flaxmnist.data.builtin import load_bundled, load_synthetic
from flaxmnist.data.draw import Draw
from flaxmnist.data.request import Request, build
from flaxmnist.data.splits import Dataset, divide
from flaxmnist.errors import UserError, did_you_mean, shown
from flaxmnist.extensions import ExtensionPoint
from flaxmnist.signatures import parameters

NAMES = (*download.FAMILY, *(f"emnist/{split}" for split in emnist.SPLITS), "qmnist")
_TORCHVISION = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "kmnist": "KMNIST"}


def _stem(path: Path) -> str:
    """Returns the name of the data at `path`, without suffix or the name of a split."""
    stem = path.name.split(".")[0] or path.name
    generic = {"raw", "data", *sum(folders.ALIASES.values(), ())}
    return _stem(path.parent) if stem in generic and path.parent.name else stem


def _find_idx(name: str, folder: Path) -> list[Path] | None:
    """Returns the IDX files of a data set in or below `folder`; None without any."""
    if (emnist.split_of(name) or name == "qmnist") and (
        found := emnist.find(folder, name)
    ):
        return found
    inside = [name, "raw", ""]
    if name in _TORCHVISION:
        inside.insert(1, f"{_TORCHVISION[name]}/raw")
    for below in inside:
        if idx.exist(folder / below):
            return idx.find(folder / below)
    return None


def load_idx(request: Request) -> Dataset:
    """Reads the four IDX files in a directory, or in FLAXMNIST_DATA_DIR.

    The files may also be in a subdirectory: one named after the data set, or one of
    torchvision, such as ``MNIST/raw`` (``raw`` if the directory is ``MNIST``).
    """
    name = request.name
    is_known = emnist.full_name(name) in NAMES
    if not is_known and (hint := did_you_mean(name, NAMES)).startswith(";"):
        raise UserError(f"data.name={shown(name)} is not available as IDX files{hint}")
    option, folder = request.existing("idx")
    if not folder.is_dir():
        raise UserError(f"{option}={shown(str(folder))} is not a directory")
    if name == "mnist":  # The default: a directory of torchvision says more.
        named = [other for other in _TORCHVISION if _TORCHVISION[other] in folder.parts]
        name = named[0] if named else name
    paths = _find_idx(name, folder) or idx.find(folder)
    # IDX files do not name their data set, but published files have known checksums.
    for other in download.FAMILY:
        if other != name and download.is_published(other, 3, paths[3]):
            raise UserError(
                f"{shown(str(paths[3]))} belongs to {other}, not to {name}; set "
                f"data.name={other!r}, or {option} to another directory"
            )
    if name in download.FAMILY:
        arrays, stem = idx.read_all(paths), _stem(paths[0].parent)
        is_like_mnist = _is_like_mnist(arrays)
        # "mnist" is the default, and says nothing about files that are not published.
        is_mnist = stem.lower() == "mnist" or download.is_published(name, 3, paths[3])
        if not is_like_mnist or (name == "mnist" and not is_mnist):
            name = stem
        if is_like_mnist and request.draw == Draw():
            if (most := arrays[3].max(initial=0)) >= mnist.NUM_CLASSES:
                raise UserError(
                    f"{shown(str(paths[3]))} contains the label {most}; expected "
                    "labels from 0 to 9, as in the training labels"
                )
            dataset = divide(name, "idx", arrays, paths, mnist.CLASS_NAMES)
            emnist.check_upright(dataset)
            return dataset
    dataset = build(request, name, emnist.read_idx(paths), folder)
    return dataclasses.replace(dataset, files=tuple(paths))


def _is_like_mnist(arrays: list[np.ndarray]) -> bool:
    images, labels, *_ = arrays
    return (
        images.dtype == np.uint8
        and images.shape[1:] == mnist.IMAGE_SHAPE[:2]
        and labels.dtype == np.uint8
        and np.array_equal(np.unique(labels), np.arange(mnist.NUM_CLASSES))
    )


def load_tfds(request: Request) -> Dataset:
    """Reads a data set prepared by TFDS; downloads or prepares it if necessary."""
    name = request.name
    folder = tfds.prepared(name, request.directory)
    if folder is None and name in download.FAMILY:
        return _load_family(request, download.cached(name) or download.fetch(name))
    folder = folder or tfds.prepare(name, request.directory)
    raw = tfds.read(folder)
    if name in download.FAMILY:
        raw = dataclasses.replace(raw, class_names=mnist.CLASS_NAMES)
    return build(request, name, raw, folder)


def _load_family(request: Request, paths: list[Path]) -> Dataset:
    """Reads the four files of a published data set."""
    if request.draw != Draw():
        raw = dataclasses.replace(
            emnist.read_idx(paths), source="tfds", class_names=mnist.CLASS_NAMES
        )
        dataset = build(request, request.name, raw, paths[0].parent)
        return dataclasses.replace(dataset, files=tuple(paths))
    arrays = idx.read_all(paths)
    return divide(request.name, "tfds", arrays, paths, mnist.CLASS_NAMES)


def load_files(
    request: Request,
    source: str | None = None,
    found: tuple[str, forms.Reader] | None = None,
) -> Dataset:
    """Reads a user's files of one of the forms in `forms.FORMS`.

    Args:
      request: with a directory or file.
      source: the form; None to recognize it.
      found: the result of `forms.reader`, if it is known.
    """
    option, path = request.existing(source or "auto")
    if (found := found or forms.reader(path, source)) is None:
        what = f"contains no data of the form {source}"
        if source is None:
            what = f"is {forms.explain(path)}"
        raise UserError(f"{option}={shown(str(path))} {what}")
    # "mnist" is the default of the option, and says nothing about these files.
    name = _stem(path) if request.name == "mnist" else request.name
    return build(request, name, found[1](), path)


def locate(name: str, directory: str | None = None) -> tuple[str, Path] | None:
    """Returns the source and path that "auto" reads; None if it would download."""
    request = Request(name, directory)
    if (given := request.given()) and given[1].exists():
        path = given[1]
        if folder := tfds.prepared(name, str(path)):
            return "tfds", folder
        if _find_idx(name, path):
            return "idx", path
        if found := forms.reader(path):
            return found[0], path
    if given and emnist.full_name(name) in NAMES:
        return "idx", given[1]
    if name in download.FAMILY and (paths := download.cached(name)):
        return "tfds", paths[0].parent
    folder = tfds.prepared(name, directory)
    return ("tfds", folder) if folder else None


def load_auto(request: Request) -> Dataset:
    """Reads a data set from the first available source.

    The order is: a given directory or file, the cache, a prepared TFDS data set, a
    download, the bundled subset. Only a failed download leads to the bundled subset; a
    given directory without the data is an error.
    """
    name = request.name
    if request.given():
        _, path = request.existing("auto")
        if tfds.prepared(name, str(path)):
            return load_tfds(dataclasses.replace(request, directory=str(path)))
        if _find_idx(name, path):
            return load_idx(request)
        if (found := forms.reader(path)) or path.is_file():
            return load_files(request, None, found)
        if others := [other for other in NAMES if _find_idx(other, path)]:
            closest = (difflib.get_close_matches(name, others, 1) or others)[0]
            raise UserError(
                f"{shown(str(path))} contains {', '.join(others)}, not {name}; set "
                f"data.name={closest!r}"
            )
        if emnist.full_name(name) in NAMES:
            raise UserError(
                f"no train-images-idx3-ubyte (or .gz) in {shown(str(path))}, and no "
                "data of another form; expected the four MNIST-format files, "
                "train/<class>/*.png, train.csv, an .npz file or train-*.parquet"
            )
    if name in download.FAMILY and (paths := download.cached(name)):
        return _load_family(request, paths)
    try:
        return load_tfds(request)
    except download.DownloadError as error:
        # The subset has a validation split of its own.
        if name != "mnist" or request.draw.validation_share is not None:
            raise
        warning = (
            f"{error}\n"
            "Using the BUNDLED SUBSET instead: 4,000 of MNIST's 60,000 training "
            "images.\nAccuracies on it cannot be compared with those on MNIST."
        )
        bundled = load_bundled(request)
        return dataclasses.replace(bundled, warning=warning)


SOURCES: dict[str, Callable[[Request], Dataset]] = {
    "auto": load_auto,
    "idx": load_idx,
    "tfds": load_tfds,
    "bundled": load_bundled,
    "synthetic": load_synthetic,
    **{form: functools.partial(load_files, source=form) for form in forms.FORMS},
}
_FILLED = ("name", "dir", "validation_share", "split_seed")
POINT = ExtensionPoint(SOURCES, _FILLED, declares=False)
OPTIONS = {
    "name": options.text,
    "source": POINT,
    "dir": options.optional(
        dataclasses.replace(options.folder, expected="a directory or a file")
    ),
    "validation_share": options.optional(options.real(0, below=1, above=True)),
    "split_seed": options.seed,
}


def load(
    name: str = "mnist",
    source: str | Callable[..., Dataset] = "auto",
    dir: str | Path | None = None,
    *,
    validation_share: float | None = None,
    split_seed: int = 0,
    **given: Any,
) -> Dataset:
    """Returns a data set of images of one shape in classes.

    Args:
      name: "mnist", "fashion_mnist", "kmnist", "emnist/letters" or another split of
        EMNIST, "qmnist", or the TFDS name of another image-classification set. Other
        files need no name.
      source: "auto", "idx", "tfds", "bundled", "synthetic", "npz", "csv", "parquet",
        "folder" or "cifar"; only "auto" falls back to another source. Or a function of
        yours that returns a `Dataset`, as "package.module:function"; it receives those
        of the other arguments that it takes.
      dir: the directory of the files, or a file.
      validation_share: share of the training examples of each class that is drawn for
        validation; None for the validation split in the files, or for a twelfth.
      split_seed: of this draw.
      **given: options of your function.

    Raises:
      UserError: an argument is invalid, or the data does not exist or is damaged.
    """
    arguments = {
        "name": name,
        "source": source,
        "dir": dir,
        "validation_share": validation_share,
        "split_seed": split_seed,
    }
    checked = options.check("data", arguments, OPTIONS)
    spec: str = checked.pop("source")
    for key in given.keys() - (known := POINT.options(spec)).keys():
        raise UserError(f"unknown option 'data.{key}'{did_you_mean(key, known)}")
    draw = Draw(checked["validation_share"], checked["split_seed"])
    if spec not in SOURCES:
        if "validation_share" not in parameters(POINT.callable(spec)):
            draw.check_unused()
        dataset = POINT.build(spec, given, **checked)
        if not isinstance(dataset, Dataset):
            raise UserError(
                f"data.source={spec!r} returned {shown(dataset)}; expected a "
                "Dataset, such as Dataset.from_arrays(…)"
            )
        return dataclasses.replace(dataset, source=spec)
    return SOURCES[spec](Request(checked["name"], checked["dir"], draw))
