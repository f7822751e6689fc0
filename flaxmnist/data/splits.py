"""Examples in memory or on disk, and how they are divided into splits."""

import dataclasses
import functools
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from flaxmnist.data import download
from flaxmnist.data.rows import is_mapped, slabs
from flaxmnist.errors import UserError, dtype_and_shape
from flaxmnist.runtime.memory import available_memory

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples in memory, or on disk as an `np.memmap`.

    Attributes:
      images: uint8 `[count, 28, 28]`.
      labels: integers `[count]`, from 0 to 9.

    Raises:
      UserError: an array has another dtype or shape, or a label is out of range.
    """

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        for name, array in (("images", images), ("labels", labels)):
            if not isinstance(array, np.ndarray):
                kind = type(array).__name__
                raise UserError(f"{name} is a {kind}; expected a NumPy array")
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise UserError(
                f"labels is {dtype_and_shape(labels)}; expected integers [count]"
            )
        if images.dtype != np.uint8 or images.shape != (len(labels), 28, 28):
            raise UserError(
                f"images is {dtype_and_shape(images)}; expected uint8 "
                f"[{len(labels)}, 28, 28] for {len(labels)} labels"
            )
        wrong = np.flatnonzero((labels < 0) | (labels > 9))
        if wrong.size:
            raise UserError(
                f"label {labels[wrong[0]]} of example {wrong[0]}; expected labels from "
                "0 to 9"
            )

    def __repr__(self) -> str:
        return f"Split({len(self):,} examples)"

    def __len__(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The three splits of a data set and their source.

    Attributes:
      name: such as ``"mnist"``.
      source: one of `SOURCES` except "auto", such as ``"idx"`` or ``"bundled"``.
      warning: a message that the user must see, if any.
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
        """Returns the licence of the images, or None if it is unknown.

        Published files are recognized by their content, not by their directory.
        """
        if self.source == "synthetic":
            return "that of flaxmnist, which generates them"
        published = self.source == "bundled" or (
            self.files
            # The last file is the smallest, and decides in most cases.
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
        """Returns a CRC-32 of the examples of each split, in their order."""
        return {split: _fingerprint(self.split(split)) for split in SPLITS}

    @property
    def fingerprint(self) -> str:
        """Returns the CRC-32 of the training split."""
        return self.fingerprints["train"]


def _fingerprint(split: Split) -> str:
    crc = 0
    for array in (split.images, split.labels):
        for part in slabs(array) if is_mapped(array) else (array,):
            crc = zlib.crc32(np.ascontiguousarray(part).data, crc)
    return f"{crc:08x}"


def divide(
    name: str, source: str, arrays: list[np.ndarray], files: Iterable[Path] = ()
) -> Dataset:
    """Returns the splits of the tutorials: the first 5,000 of 60,000 for validation.

    If the distribution of their classes differs from that of all examples, as in sorted
    data, a twelfth of each class is for validation instead.

    Args:
      name: of the data set.
      source: see :class:`Dataset`.
      arrays: training images and labels, test images and labels.
      files: see :class:`Dataset`.

    Raises:
      UserError: as :class:`Split`, or the validation split does not fit into memory.
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
        # Sort by class, in random order within each class, and take every twelfth.
        draws = np.random.Philox(0).random_raw(len(labels))
        chosen = np.zeros(len(labels), bool)
        chosen[np.lexsort((draws, labels))[11::12]] = True
        train = Split(images[~chosen], labels[~chosen])
        validation = Split(images[chosen], labels[chosen])
    test = Split(test_images, test_labels)
    return Dataset(name, source, train, validation, test, warning, tuple(files))


def _is_unlike(part: np.ndarray, labels: np.ndarray) -> bool:
    """Returns whether the classes of a part differ from all by more than chance.

    Uses Pearson's chi-squared statistic. If the part is drawn at random, its mean is
    the number of degrees of freedom.
    """
    counts = np.bincount(labels, minlength=10)
    freedom = np.count_nonzero(counts) - 1
    expected = (counts * len(part) / max(len(labels), 1))[counts > 0]
    found = np.bincount(part, minlength=10)[counts > 0]
    statistic = ((found - expected) ** 2 / np.maximum(expected, 1e-9)).sum()
    return bool(freedom > 0 and statistic > freedom + 10 * np.sqrt(2 * freedom))
