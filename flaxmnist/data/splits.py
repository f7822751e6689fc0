"""Examples in memory or on disk, and how they are divided into splits."""

import collections
import dataclasses
import functools
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from flaxmnist.core.batch import MAX_CHANNELS, MAX_CLASSES, MAX_SIDE, ImageShape
from flaxmnist.data import download
from flaxmnist.data.checks import no_test, warnings
from flaxmnist.data.draw import VALIDATION_SHARE, Draw, is_unlike, stratified
from flaxmnist.data.raw import Pair, Pixels, converted
from flaxmnist.data.rows import is_mapped, slabs
from flaxmnist.errors import UserError, dtype_and_shape, shown
from flaxmnist.runtime.memory import available_memory

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples in memory, or on disk as an `np.memmap`.

    Attributes:
      images: uint8 `[count, height, width]` or `[count, height, width, channels]`, up
        to 256 × 256 pixels and 4 channels.
      labels: integers `[count]`, from 0.

    Raises:
      UserError: an array has another dtype or shape, or a label is negative.
    """

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        for name, array in (("images", images), ("labels", labels)):
            if not isinstance(array, np.ndarray):
                kind = type(array).__name__
                raise UserError(
                    f"{name} is a {kind}; expected a NumPy array, such as "
                    f"np.asarray({name})"
                )
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise UserError(
                f"labels is {dtype_and_shape(labels)}; expected integers [count]"
            )
        count, *shape = images.shape or (0,)
        most = (MAX_SIDE, MAX_SIDE, MAX_CHANNELS)
        fits = len(shape) in (2, 3) and all(
            0 < size <= limit for size, limit in zip(shape, most, strict=False)
        )
        if images.dtype != np.uint8 or count != len(labels) or not fits:
            raise UserError(
                f"images is {dtype_and_shape(images)}; expected uint8 "
                f"[{len(labels)}, height, width] or [{len(labels)}, height, width, "
                f"channels] for {len(labels)} labels, with at most {MAX_SIDE} pixels "
                f"per side and {MAX_CHANNELS} channels"
            )
        check_labels(labels, MAX_CLASSES)

    def __repr__(self) -> str:
        return f"Split({len(self):,} examples)"

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> ImageShape:
        """Height, width and channels of an image."""
        height, width, *channels = self.images.shape[1:]
        return height, width, *(channels or (1,))


def check_labels(labels: np.ndarray, num_classes: int) -> None:
    """Raises UserError unless every label is from 0 to `num_classes` - 1."""
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        raise UserError(
            f"label {labels[wrong[0]]} of example {wrong[0]}; expected labels from "
            f"0 to {num_classes - 1}"
        )


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The three splits of a data set and their source.

    Attributes:
      name: such as ``"mnist"``.
      source: such as ``"idx"`` or ``"arrays"``, or your function, as "module:function".
      warning: a message that the user must see, if any.
      files: the IDX files that were read, in the order of `idx.STEMS`.
      class_names: a name per class; "0", "1", … up to the largest label if empty.

    Raises:
      UserError: the splits have different image shapes, a label has no class name, two
        classes have the same, or no class of the test has training examples.
    """

    name: str
    source: str
    train: Split
    validation: Split
    test: Split
    warning: str | None = None
    files: tuple[Path, ...] = ()
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        splits = {name: self.split(name) for name in SPLITS}
        if len({split.image_shape for split in splits.values()}) > 1:
            shapes = (f"{name} {one.image_shape}" for name, one in splits.items())
            raise UserError(
                f"the splits of {self.name} have images of different shapes: "
                f"{', '.join(shapes)}; expected one shape"
            )
        if not self.class_names:
            most = max(split.labels.max(initial=0) for split in splits.values())
            names = tuple(map(str, range(max(int(most) + 1, 2))))
            object.__setattr__(self, "class_names", names)
        for split in splits.values():
            check_labels(split.labels, self.num_classes)
        counts = collections.Counter(self.class_names).most_common(1)
        if counts[0][1] > 1:
            raise UserError(
                f"{self.name} has {counts[0][1]} classes named {shown(counts[0][0])}; "
                "expected a different name for each class"
            )
        labels = {name: split.labels for name, split in splits.items()}
        found = warnings(self.name, self.train.images, labels, self.class_names)
        given = [self.warning] if self.warning else []
        # A copy by `dataclasses.replace` has them already.
        given += [text for text in found if text not in (self.warning or "")]
        object.__setattr__(self, "warning", "\n".join(given) or None)

    @classmethod
    def from_arrays(
        cls,
        train: Pair,
        test: Pair | None = None,
        class_names: Iterable[str] | None = (),
        validation: Pair | None = None,
        name: str = "arrays",
    ) -> "Dataset":
        """Returns a data set of images and labels in memory.

        Args:
          train: images, as :class:`Split` takes them or as :class:`raw.Pixels` converts
            them, such as floating point in [0, 1]; and labels, integers or one-hot.
          test: the same; if None, a sixth of each class of `train` is drawn for it.
          class_names: a name per class; "0", "1", … if empty or None.
          validation: as `train`; if None, the first twelfth of `train`, or a twelfth of
            each class if `train` is sorted by class or `test` is None.
          name: shown in tables and reports.

        Raises:
          UserError: as :class:`Split` and :class:`Dataset`.
        """
        if not isinstance(class_names, Iterable | None):
            raise UserError(
                f"class_names={shown(class_names)}: expected a name per class, such as "
                "('cat', 'dog')"
            )
        names = () if class_names is None else tuple(map(str, class_names))
        pixels = Pixels(name)
        given = {"train": train, "validation": validation, "test": test}
        pairs = {
            split: converted(split, pair, pixels)
            for split, pair in given.items()
            if split == "train" or pair is not None
        }
        splits = {split: Split(*pair) for split, pair in pairs.items()}
        if test is not None and validation is None:
            arrays = [*pairs["train"], *pairs["test"]]
            return divide(name, "arrays", arrays, class_names=names)
        whole, warning = splits["train"], None
        if test is None:
            masks = Draw().rows({split: one.labels for split, one in splits.items()})
            splits |= {
                split: Split(whole.images[mask], whole.labels[mask])
                for split, mask in masks.items()
            }
            warning = no_test(name)
        parts = splits["train"], splits["validation"], splits["test"]
        return cls(name, "arrays", *parts, warning, class_names=names)

    def __repr__(self) -> str:
        counts = ", ".join(f"{split} {n:,}" for split, n in self.counts.items())
        return f"Dataset({self.name}, {self.source}: {counts})"

    @property
    def image_shape(self) -> ImageShape:
        """Height, width and channels of an image."""
        return self.train.image_shape

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

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
            and self.name in download.LICENCES
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
    name: str,
    source: str,
    arrays: list[np.ndarray],
    files: Iterable[Path] = (),
    class_names: tuple[str, ...] = (),
) -> Dataset:
    """Returns the splits of the tutorials: the first 5,000 of 60,000 for validation.

    If the distribution of their classes differs from that of all examples, as in sorted
    data, a twelfth of each class is for validation instead.

    Args:
      name: of the data set.
      source: see :class:`Dataset`.
      arrays: training images and labels, test images and labels.
      files: see :class:`Dataset`.
      class_names: see :class:`Dataset`.

    Raises:
      UserError: as :class:`Split`, or the validation split does not fit into memory.
    """
    images, labels, test_images, test_labels = arrays
    held_out = len(labels) // 12
    warning = None
    train = Split(images[held_out:], labels[held_out:])
    validation = Split(images[:held_out], labels[:held_out])
    if is_unlike(validation.labels, labels):
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
        chosen = stratified(labels, VALIDATION_SHARE, seed=0)
        train = Split(images[~chosen], labels[~chosen])
        validation = Split(images[chosen], labels[chosen])
    test = Split(test_images, test_labels)
    return Dataset(
        name, source, train, validation, test, warning, tuple(files), class_names
    )
