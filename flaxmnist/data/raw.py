"""The content of data files, and its conversion to the form that training reads."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from flaxmnist.core.batch import MAX_CHANNELS, MAX_CLASSES, MAX_SIDE
from flaxmnist.errors import UserError, dtype_and_shape, printable, shown

# Texts of missing numbers, in lower case, as pandas reads them.
_MISSING = ("nan", "na", "n/a", "null", "none")
# Images and labels of consecutive examples.
Chunk = tuple[np.ndarray, np.ndarray]
# Images and labels of a split.
Pair = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Raw:
    """A data set as its files contain it.

    Attributes:
      source: the form of the files, such as ``"csv"``.
      files: their paths; their content decides whether a cached conversion is valid.
      splits: split → function that reads its examples from the start.
      class_names: a name per label 0, 1, …; None if the labels are the names.
      warning: a message that the user must see, if any.
      options: whatever else the conversion depends on.
    """

    source: str
    files: tuple[Path, ...]
    splits: Mapping[str, Callable[[], Iterator[Chunk]]]
    class_names: tuple[str, ...] | None = None
    warning: str | None = None
    options: str = ""


class Pixels:
    """Converts all images of a data set to uint8 in the same way.

    The first images decide the layout, and whether floating-point pixels are in [0, 1]
    or whole numbers up to 255. Others must be alike.

    Args:
      name: of the data, for errors.
    """

    def __init__(self, name: str):
        self.name = name
        self._shape: tuple[int, ...] | None = None
        self._in_unit: bool | None = None

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Returns images as uint8 `[count, height, width]` or with channels.

        Args:
          images: bool, integers in 0 … 255, or floating point in [0, 1] or whole
            numbers up to 255; `[count, height, width]`, with 1 to 4 channels at the end
            or, if that is unambiguous, after `count`; or flat squares.

        Raises:
          UserError: they have another shape, dtype or range.
        """
        if self._shape is None:
            self._shape = images.shape[1:]
        if images.shape[1:] != self._shape:
            raise UserError(
                f"{self.name} contains images of different shapes, "
                f"{_shape(self._shape)} and {_shape(images.shape[1:])}; expected one "
                "shape"
            )
        levels = self._levels(self._arrange(images))
        # An array on disk stays there.
        return levels if levels.flags.c_contiguous else np.ascontiguousarray(levels)

    def _arrange(self, images: np.ndarray) -> np.ndarray:
        match images.shape[1:]:
            case (pixels,) if (side := math.isqrt(pixels)) ** 2 == pixels:
                images = images.reshape(-1, side, side)
            case (_, _, channels) if channels <= MAX_CHANNELS:
                images = images[..., 0] if channels == 1 else images
            case (channels, _, _) if channels <= MAX_CHANNELS:
                images = np.moveaxis(images, 1, -1)
                images = images[..., 0] if channels == 1 else images
            case (_, _):
                pass
            case _:
                raise self._wrong_shape(images)
        if not all(0 < side <= MAX_SIDE for side in images.shape[1:3]):
            raise self._wrong_shape(images)
        return images

    def _wrong_shape(self, images: np.ndarray) -> UserError:
        return UserError(
            f"{self.name} contains images of shape {_shape(images.shape[1:])}; "
            "expected [height, width], [height, width, channels] or flat squares, at "
            f"most {MAX_SIDE} pixels per side and {MAX_CHANNELS} channels"
        )

    def _levels(self, images: np.ndarray) -> np.ndarray:
        if images.dtype == np.uint8 or not images.size:
            return images.astype(np.uint8, copy=False)
        if images.dtype == bool:
            return images * np.uint8(255)
        if images.dtype.kind not in "iuf":
            raise UserError(
                f"{self.name} contains pixels of dtype {images.dtype}; expected numbers"
            )
        low, high = images.min(), images.max()
        if self._in_unit is None:
            self._in_unit = bool(images.dtype.kind == "f" and high <= 1)
        levels = np.round(images * 255) if self._in_unit else np.trunc(images)
        fits = low >= 0 and high <= (1 if self._in_unit else 255)
        if not fits or not (self._in_unit or (levels == images).all()):
            raise UserError(
                f"{self.name} contains {images.dtype} pixels from {low:g} to {high:g}; "
                "expected whole numbers from 0 to 255, or floating point from 0 to 1. "
                "Rescale them"
            )
        return levels.astype(np.uint8)


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def converted(split: str, pair: Pair | None, pixels: Pixels) -> Pair:
    """Returns images and labels as a `Split` takes them, if they can be converted."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise UserError(
            f"{split} is {shown(pair)}; expected a pair of arrays, (images, labels)"
        )
    images, labels = pair
    if isinstance(images, np.ndarray) and not _is_stored(images):
        images = pixels(images)
    if isinstance(labels, np.ndarray) and (
        labels.ndim == 2 or labels.dtype.kind == "f"
    ):
        labels = one_column(labels, pixels.name)
    return images, labels


def _is_stored(images: np.ndarray) -> bool:
    """Returns whether images have the dtype and the layout of a `Split`."""
    is_last = images.ndim == 4 and images.shape[-1] <= MAX_CHANNELS
    return images.dtype == np.uint8 and (images.ndim == 3 or is_last)


def as_text(array: np.ndarray) -> np.ndarray:
    """Returns an array of bytes as texts, and any other unchanged."""
    is_bytes = array.dtype.kind == "S"
    return np.char.decode(array, "utf-8", "replace") if is_bytes else array


def one_column(labels: np.ndarray, name: str) -> np.ndarray:
    """Returns labels as `[count]`: integers, or texts.

    Args:
      labels: `[count]` or `[count, 1]`, integers, whole numbers, texts; or one-hot
        vectors `[count, classes]`.
      name: of the data, for errors.

    Raises:
      UserError: they are something else.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    labels = as_text(labels)
    if labels.ndim == 2 and labels.dtype.kind in "buif":
        if not (((labels == 0) | (labels == 1)).all() and (labels.sum(1) == 1).all()):
            raise UserError(
                f"{name} contains labels of shape {_shape(labels.shape)} that are not "
                "one-hot; expected [count], or a single 1 in each row"
            )
        return labels.argmax(1)
    if labels.ndim != 1 or labels.dtype.kind not in "buifU":
        raise UserError(
            f"{name} contains labels {dtype_and_shape(labels)}; expected integers or "
            "texts [count]"
        )
    if labels.dtype.kind == "f" and (labels % 1 != 0).any():  # Or not finite.
        raise UserError(
            f"{name} contains the label {labels[labels % 1 != 0][0]:g}; expected whole "
            "numbers or texts"
        )
    if labels.dtype.kind in "uf" and (over := abs(labels) >= 2.0**63).any():
        raise UserError(
            f"{name} contains the label {labels[over][0]}; expected whole numbers "
            "of at most 64 bits with a sign, or texts"
        )
    return labels if labels.dtype.kind == "U" else labels.astype(np.int64)


def to_classes(
    labels: Mapping[str, np.ndarray], names: tuple[str, ...] | None, name: str
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Returns consecutive labels of each split, and a name per class.

    Labels that do not start at 0, have gaps or are texts become the names of classes.

    Args:
      labels: split → integers or texts `[count]`.
      names: a name per label 0, 1, … or 1, 2, …, if known.
      name: of the data, for errors.

    Raises:
      UserError: a label is missing or has no name, or there is one class only, or too
        many.
    """
    # Where one split has texts, and another integers, all become texts.
    joined = numbers(np.concatenate(list(labels.values())), name)
    values, indices = np.unique(joined, return_inverse=True)
    if names is None or values.dtype.kind == "U":
        names = tuple(map(str, values.tolist()))
    else:
        if values[0] == 1 and values[-1] == len(names):
            joined, values = joined - 1, values - 1
        if values[0] < 0 or values[-1] >= len(names):
            wrong = values[0] if values[0] < 0 else values[-1]
            raise UserError(
                f"{name} contains the label {wrong}; expected labels from 0 to "
                f"{len(names) - 1}"
            )
        indices = joined
    if not 2 <= len(names) <= MAX_CLASSES:
        examples = ", ".join(map(shown, names[:3]))
        raise UserError(
            f"{name} contains {len(names):,} class{'es' if len(names) != 1 else ''} "
            f"({examples}{', …' if len(names) > 3 else ''}); expected from 2 to "
            f"{MAX_CLASSES:,}"
        )
    ends = np.cumsum([len(part) for part in labels.values()])
    indices = indices.astype(np.uint8 if len(names) <= 256 else np.int32)
    parts = np.split(indices, ends[:-1])
    # The name of a directory may contain line breaks, or bytes that are not UTF-8.
    return dict(zip(labels, parts, strict=True)), tuple(map(printable, names))


def numbers(labels: np.ndarray, name: str) -> np.ndarray:
    """Returns texts that are whole numbers, all of them, as integers `[count]`.

    Args:
      labels: integers or texts `[count]`.
      name: of the data, for errors.

    Raises:
      UserError: one is empty, or they are numbers, of which some are missing.
    """
    if labels.dtype.kind != "U":
        return labels
    values, indices = np.unique(labels, return_inverse=True)
    if (values == "").any():
        raise UserError(
            f"{name} contains an empty label; expected whole numbers or texts"
        )
    missing = np.isin(np.char.lower(values), _MISSING)
    if not all(map(_is_number, values[~missing])):
        return labels
    if missing.any():
        raise UserError(
            f"{name} contains the label {shown(str(values[missing][0]))}, which stands "
            "for a missing number; expected whole numbers or texts. Remove its examples"
        )
    return np.array([_number(text) for text in values.tolist()])[indices]


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?\d{1,18}(\.0*)?", text) is not None


def _number(text: str) -> int:
    return int(text.partition(".")[0])


def chunked(images: np.ndarray, labels: np.ndarray) -> Iterator[Chunk]:
    """Yields arrays in chunks of about 16 MiB."""
    count = max(1, (1 << 24) * len(labels) // max(images.nbytes, 1))
    for start in range(0, len(labels), count):
        yield images[start : start + count], labels[start : start + count]
