"""CSV files: a gray image per line, its label in the first, last or a named column."""

import collections
import contextlib
import csv
import dataclasses
import functools
import gzip
import io
import itertools
import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from flaxmnist.core.batch import MAX_CLASSES, MAX_SIDE
from flaxmnist.data import idx
from flaxmnist.data.raw import Chunk, Raw
from flaxmnist.errors import UserError, shown
from flaxmnist.runtime.files import open_regular

# Names of the column of labels, and of columns that are left out, in lower case.
_LABELS = ("label", "labels", "class", "target", "y", "digit", "character", "category")
_IGNORED = ("", "id", "index", "unnamed: 0", "image_id", "imageid")
# Maximum number of characters of a line, and about the number of fields of a chunk.
_MAX_LINE, _FIELDS = 1 << 23, 1 << 22
# Where their column is not named, labels have at most this share of one value, and
# the pixel at the other border of the images at least that share.
_MAX_SHARE, _MIN_BORDER_SHARE = 0.95, 0.9
_WHOLE = re.compile(r"\s*[+-]?\d+(\.0*)?\s*")


@dataclasses.dataclass(frozen=True)
class _Table:
    """A file and its columns.

    Attributes:
      path: the file.
      delimiter: between fields.
      has_header: whether the first line contains the names of the columns.
      width: number of columns.
      label: column of the labels; None if there are no labels.
      pixels: columns of the pixels.
    """

    path: Path
    delimiter: str
    has_header: bool
    width: int
    label: int | None
    pixels: tuple[int, ...]


def read(paths: Mapping[str, Path]) -> Raw:
    """Returns the images in CSV files.

    Commas, semicolons or tabs separate the fields. A header line is optional. Without
    a column named ``label``, ``class`` or similar, the labels are in the first column,
    as in Kaggle's files, or in the last: the one whose values are like labels.

    Args:
      paths: split → file, gzipped or not.

    Raises:
      UserError: a file is not a table of square images.
    """
    train = _table(paths["train"])
    if train.label is None:
        raise UserError(
            f"{shown(str(train.path))} contains {train.width} columns, pixels without "
            "labels; expected a column of labels"
        )
    tables = {"train": train}
    warnings = []
    for split, path in paths.items():
        table = train if split == "train" else _table(path, train)
        if table.label is not None:
            tables[split] = table
        else:
            warnings.append(
                f"{shown(str(path))} has no labels, as in Kaggle's competitions, and "
                "is left out."
            )
    return Raw(
        source="csv",
        files=tuple(table.path for table in tables.values()),
        splits={
            split: functools.partial(_chunks, table) for split, table in tables.items()
        },
        warning="\n".join(warnings) or None,
    )


@contextlib.contextmanager
def _lines(path: Path) -> Iterator[Iterator[tuple[int, str]]]:
    """Opens a text file; yields an iterator of line numbers and lines, but empty ones.

    Raises:
      UserError: it cannot be read, or is not a text in UTF-8.
    """
    name = shown(str(path))

    def numbered(file: io.TextIOBase) -> Iterator[tuple[int, str]]:
        for number in itertools.count(1):
            if not (line := file.readline(_MAX_LINE)):
                return
            if len(line) == _MAX_LINE:
                raise UserError(f"line {number} of {name} is too long for a CSV file")
            if line.strip():
                yield number, line

    try:
        with open_regular(path, idx.MAX_BYTES) as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            binary = (
                cast(io.BufferedReader, gzip.GzipFile(fileobj=raw)) if packed else raw
            )
            with io.TextIOWrapper(binary, "utf-8-sig") as text:
                yield numbered(text)
    except (OSError, EOFError, zlib.error, UnicodeError) as error:
        reason = (
            "it is not a text in UTF-8" if isinstance(error, UnicodeError) else error
        )
        raise UserError(f"{name} cannot be read as CSV ({reason})") from None


def _table(path: Path, like: _Table | None = None) -> _Table:
    """Finds the columns of a file; those of `like` if the width is the same."""
    with _lines(path) as lines:
        _, first = next(lines, (0, ""))
    delimiter = max(",;\t", key=first.count)
    fields = [field.strip() for field in _split(first, delimiter, path)]
    names = [field.lower() for field in fields] if _is_header(fields) else None
    columns = [
        column
        for column in range(len(fields))
        if names is None or names[column] not in _IGNORED
    ]
    found = _Table(path, delimiter, names is not None, len(fields), None, ())
    known = [name for name in _LABELS if names is not None and name in names]
    if names is not None and known:
        label: int | None = names.index(known[0])
    elif like is not None and like.width == len(fields):
        label = like.label
    elif _is_square(len(columns)):
        label = None
    elif _is_square(len(columns) - 1):
        label = _choose(found, columns[0], columns[-1])
    else:
        label = columns[0] if columns else None
    pixels = tuple(column for column in columns if column != label)
    if names is not None:
        pixels = _by_number(pixels, names)
    if not _is_square(len(pixels)):
        raise UserError(
            f"{shown(str(path))} has {len(fields)} columns, of which {len(pixels)} are "
            "pixels; expected a label and a square number of pixels, such as 28 × 28 = "
            "784. Images of other shapes or in colour can be in an .npz file or an "
            "image directory"
        )
    return dataclasses.replace(found, label=label, pixels=pixels)


def _by_number(pixels: tuple[int, ...], names: list[str]) -> tuple[int, ...]:
    """Returns columns such as ``pixel0``, ``pixel1``, … in the order of their numbers.

    A program that sorts by name writes ``pixel10`` before ``pixel2``.
    """
    found = [re.fullmatch(r"(\D*)(\d{1,9})", names[column]) for column in pixels]
    matches = [match for match in found if match]
    if len(matches) < len(pixels) or len({match[1] for match in matches}) > 1:
        return pixels
    number = {
        column: int(match[2]) for column, match in zip(pixels, matches, strict=True)
    }
    return tuple(sorted(pixels, key=number.__getitem__))


def _split(line: str, delimiter: str, path: Path) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error as error:  # A field is too long.
        raise UserError(
            f"{shown(str(path))} cannot be read as CSV ({error}); expected a "
            "label and pixels per line, with commas, semicolons or tabs between them"
        ) from None


def _is_square(count: int) -> bool:
    return 1 < count <= MAX_SIDE**2 and math.isqrt(count) ** 2 == count


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _is_header(fields: list[str]) -> bool:
    inner = fields[1:-1]
    if not all(map(_is_number, inner)):
        return True
    # pandas numbers the columns of an array: 0, 1, 2, …
    numbers = np.array(inner, np.float64)
    return len(inner) > 8 and bool((np.diff(numbers) == 1).all())


def _choose(table: _Table, first: int, last: int) -> int:
    """Returns the column of the labels, by the values of two columns.

    Labels are texts or whole numbers. Each is about equally frequent, while most pixels
    at the border of an image have one value.
    """
    after_first, after_last = first + 1, table.width - last
    found: tuple[collections.Counter[str], ...] = tuple(
        collections.Counter() for _ in range(2)
    )
    with _lines(table.path) as lines:
        for number, line in lines:
            if table.has_header and number == 1:
                continue
            fields = line.split(table.delimiter, after_first)
            found[0][fields[min(first, len(fields) - 1)].strip(' \t\r\n"')] += 1
            fields = line.rsplit(table.delimiter, after_last)
            found[1][fields[-min(after_last, len(fields))].strip(' \t\r\n"')] += 1
    shares: list[float] = []
    for values in found:
        are_whole = all(map(_WHOLE.fullmatch, values))
        if not any(map(_is_number, values)):
            shares.append(0)  # Texts cannot be pixels.
        elif are_whole and 1 < len(values) <= MAX_CLASSES:
            shares.append(max(values.values()) / values.total())
        else:
            shares.append(1)
    are_unlike = min(shares) > _MAX_SHARE
    # In photographs, a pixel at the border has many values, as labels may have.
    are_alike = min(shares) and max(shares) < max(_MIN_BORDER_SHARE, 2 * min(shares))
    if are_unlike or are_alike:
        raise UserError(
            f"{shown(str(table.path))} does not name its column of labels, and the "
            f"first and the last are both {'unlike' if are_unlike else 'like'} labels; "
            "expected a header line that names one of them 'label'"
        )
    return (first, last)[shares.index(min(shares))]


def _chunks(table: _Table) -> Iterator[Chunk]:
    """Yields the pixels, float64 `[count, pixels]`, and labels, texts `[count]`."""
    with _lines(table.path) as lines:
        if table.has_header:
            next(lines)
        while part := list(itertools.islice(lines, max(1, _FIELDS // table.width))):
            for number, line in part:
                count = line.count(table.delimiter) + 1
                if '"' in line:
                    count = len(_split(line, table.delimiter, table.path))
                if count != table.width:
                    raise UserError(
                        f"line {number} of {shown(str(table.path))} has {count} "
                        f"fields; expected {table.width}, as in the first line"
                    )
            yield _parse(table, part)


def _parse(table: _Table, part: list[tuple[int, str]]) -> Chunk:
    texts = [line for _, line in part]
    parse: Callable[..., Any] = functools.partial(
        np.loadtxt, texts, delimiter=table.delimiter, quotechar='"', comments=None
    )
    try:
        pixels = parse(dtype=np.float64, usecols=table.pixels, ndmin=2)
    except ValueError:
        for number, line in part:
            fields = _split(line, table.delimiter, table.path)
            for column in table.pixels:
                if not _is_number(fields[column]):
                    raise UserError(
                        f"line {number} of {shown(str(table.path))} has "
                        f"{shown(fields[column])} in column {column + 1}; expected a "
                        "pixel, a number"
                    ) from None
        raise
    labels = np.char.strip(parse(dtype=np.str_, usecols=table.label, ndmin=1))
    if (empty := np.flatnonzero(labels == "")).size:
        raise UserError(
            f"line {part[empty[0]][0]} of {shown(str(table.path))} has no label"
        )
    return pixels, labels
