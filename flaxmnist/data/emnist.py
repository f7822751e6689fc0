"""EMNIST (Cohen et al., 2017) and QMNIST (Yadav and Bottou, 2019).

The files of EMNIST contain transposed images. Those of QMNIST contain eight numbers per
label, of which the first is the class.
"""

import dataclasses
import functools
import string
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from flaxmnist.core import mnist
from flaxmnist.data import idx
from flaxmnist.data.raw import Chunk, Raw, chunked, numbers, one_column
from flaxmnist.data.splits import Dataset, Split
from flaxmnist.errors import UserError, did_you_mean, shown

_UPPER = string.ascii_uppercase
# The names of the classes of each split, in the order of its mapping. In bymerge and
# balanced, some capital letters include small letters of the same form.
SPLITS = {
    "byclass": string.digits + _UPPER + string.ascii_lowercase,
    "bymerge": string.digits + _UPPER + "abdefghnqrt",
    "balanced": string.digits + _UPPER + "abdefghnqrt",
    "letters": _UPPER,
    "digits": string.digits,
    "mnist": string.digits,
}
# Mean images of MNIST's digits, 7 × 7 pixels each, from 0 to 9.
_DIGITS = (
    "0000000002782001776700471370065265003995100000000",
    "0000000000341000065000009200002810000451000000000",
    "0001000014761001236200025610047973003643200000000",
    "0000000015861001258200049710011272003786100011000",
    "0000000001122001536300395920024761000143000001000",
    "0000000002664101795310199510023472003896100011000",
    "0001200002640000561100186740019883000374000000000",
    "0000000001220003779300122820001650000362000022100",
    "0000000002662001556400049510015641001674100011000",
    "0000000001430001767200276910003650000253000012100",
)
# Minimum correlation of a transposed mean with those, and its lead over the upright.
# The transposed test images of the bundled subset of MNIST have 0.99, upright 0.62.
_MIN_LIKE, _MIN_LEAD = 0.7, 0.2
# Examples that decide the orientation, and how many of them must be digits.
_EXAMPLES, _MIN_DIGITS = 2_000, 100
# Numbers of images in the published versions of EMNIST's letters.
_LETTERS = (145_600, 103_600)


def split_of(name: str) -> str | None:
    """Returns the split of EMNIST that `name` names; None for other data sets.

    Raises:
      UserError: the split is unknown.
    """
    family, _, split = name.partition("/")
    if family != "emnist":
        return None
    if (split or "byclass") not in SPLITS:
        known = [f"emnist/{known}" for known in SPLITS]
        raise UserError(
            f"data.name={shown(name)} is unknown{did_you_mean(name, known)}"
        )
    return split or "byclass"


def full_name(name: str) -> str:
    """Returns the name of a data set; of EMNIST, with the name of the split.

    Raises:
      UserError: the split is unknown.
    """
    split = split_of(name)
    return f"emnist/{split}" if split else name


def upright(raw: Raw, split: str) -> Raw:
    """Returns EMNIST's images upright, with labels from 0 and the names of the classes.

    Labels that are texts, and names that the data have themselves, are kept.

    Args:
      raw: the data set as it is published, in any form.
      split: one of `SPLITS`.
    """
    # Without names of their own, the letters have labels from 1.
    first = int(split == "letters" and raw.class_names is None)
    name = f"emnist/{split}"

    def chunks(read: Callable[[], Iterator[Chunk]]) -> Iterator[Chunk]:
        for images, labels in read():
            if images.shape[1:] in ((784,), (1, 28, 28), (28, 28, 1)):
                images = images.reshape(-1, 28, 28)
            if images.shape[1:3] == (28, 28):
                images = images.swapaxes(1, 2)
            labels = numbers(one_column(labels, name), name)
            if labels.dtype.kind != "U":
                if (labels < first).any():
                    raise UserError(
                        f"{name} contains the label {labels.min()}; expected "
                        f"labels from {first}, as in its published files"
                    )
                labels = labels - first
            yield images, labels

    return dataclasses.replace(
        raw,
        splits={
            part: functools.partial(chunks, read) for part, read in raw.splits.items()
        },
        class_names=raw.class_names or tuple(SPLITS[split]),
        options=f"{raw.options} upright {split}",
    )


def find(folder: Path, name: str) -> list[Path] | None:
    """Returns the IDX files of EMNIST or QMNIST in or below `folder`, if any.

    They may be in ``raw``, as in torchvision, or, of EMNIST, in ``gzip``, as published.
    """
    prefix = full_name(name).replace("/", "-") + "-"
    inside = "QMNIST" if name == "qmnist" else "EMNIST"
    for below in ("", "raw", "gzip", f"{inside}/raw", inside.lower()):
        if idx.exist(folder / below, prefix):
            return idx.find(folder / below, prefix)
    return None


def read_idx(paths: list[Path]) -> Raw:
    """Returns the images in IDX files as they are; the labels may be QMNIST's."""

    def chunks(images: Path, labels: Path) -> Iterator[Chunk]:
        pixels, classes = idx.read_pair(images, labels)
        yield from chunked(pixels, classes[:, 0] if classes.ndim == 2 else classes)

    return Raw(
        source="idx",
        files=tuple(paths),
        splits={
            "train": functools.partial(chunks, *paths[:2]),
            "test": functools.partial(chunks, *paths[2:]),
        },
    )


def check_upright(dataset: Dataset) -> None:
    """Raises UserError if images look like the transposed ones in EMNIST's files.

    Compares the mean images of the digits with those of MNIST, as they are and
    transposed. The letters are recognized by their number.
    """
    if dataset.train.images.shape[1:] != mnist.IMAGE_SHAPE[:2]:
        return
    are_letters = dataset.class_names == tuple(map(str, range(1, 27)))
    if (are_letters and sum(dataset.counts.values()) in _LETTERS) or (
        dataset.class_names[:10] == mnist.CLASS_NAMES and _are_transposed(dataset.test)
    ):
        known = ", ".join(f"emnist/{split}" for split in SPLITS)
        raise UserError(
            f"the images of {dataset.name} are transposed, as in EMNIST's files; a "
            "model of them would misread upright images. Set data.name to one of "
            f"{known}, which turns them"
        )


def _are_transposed(split: Split) -> bool:
    rows = np.arange(0, len(split), max(1, len(split) // _EXAMPLES))
    images, labels = split.images[rows], split.labels[rows]
    if np.count_nonzero(labels < 10) < _MIN_DIGITS:
        return False
    likeness = np.zeros(2)
    digits = np.unique(labels[labels < 10])
    for digit in digits:
        mean = images[labels == digit].mean(0).reshape(7, 4, 7, 4).mean((1, 3))
        known = np.array(list(_DIGITS[digit]), float).reshape(7, 7)
        if mean.std():
            for index, form in enumerate((mean, mean.T)):
                likeness[index] += np.corrcoef(form.ravel(), known.ravel())[0, 1]
    upright, transposed = likeness / len(digits)
    return bool(transposed > max(_MIN_LIKE, upright + _MIN_LEAD))
