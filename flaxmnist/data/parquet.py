"""Parquet files of images, as Hugging Face's data sets have them."""

import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flaxmnist.data import idx
from flaxmnist.data.encoded import Example, decoders
from flaxmnist.data.raw import Raw
from flaxmnist.errors import UserError, shown
from flaxmnist.runtime.files import open_regular

_IMAGES, _LABELS = (
    ("image", "img", "images"),
    ("label", "labels", "fine_label", "class"),
)
_ROWS = 1_024


def read(paths: Mapping[str, list[Path]]) -> Raw:
    """Returns the images in Parquet files.

    The column of images, ``image`` or ``img``, contains the bytes of image files, alone
    or as the field ``bytes`` of a struct. The column ``label`` contains integers or
    texts. Hugging Face's metadata names the classes.

    Args:
      paths: split → files.

    Raises:
      UserError: pyarrow is not installed, or a file has other columns.
    """
    images, labels = _columns(paths["train"][0])
    files = [path for part in paths.values() for path in part]
    return Raw(
        source="parquet",
        files=tuple(files),
        splits=decoders(
            {
                split: functools.partial(_examples, part, images, labels)
                for split, part in paths.items()
            }
        ),
        class_names=_class_names(files, labels),
    )


def _opened(path: Path) -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise UserError(
            f"{shown(str(path))}: reading Parquet requires pyarrow: "
            "pip install 'flaxmnist[parquet]'"
        ) from None
    try:
        with open_regular(path, idx.MAX_BYTES):
            return parquet.ParquetFile(path)
    except UserError:
        raise
    except Exception as error:  # pyarrow raises many kinds of errors.
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> UserError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UserError(f"{shown(str(path))} cannot be read as Parquet ({reason[:160]})")


def _columns(path: Path) -> list[str]:
    """Returns the columns of images and labels."""
    with _opened(path) as file:
        names = file.schema_arrow.names
    columns = []
    for known in (_IMAGES, _LABELS):
        found = [name for name in known if name in names]
        if not found:
            raise UserError(
                f"{shown(str(path))} has the columns {', '.join(names)}; "
                f"expected one named {' or '.join(known)}"
            )
        columns.append(found[0])
    return columns


def _class_names(paths: list[Path], labels: str) -> tuple[str, ...] | None:
    """Returns the names of the classes in the metadata of any file.

    Raises:
      UserError: two files have different names, or names in another order.
    """
    known: tuple[Path, tuple[str, ...]] | None = None
    for path in paths:
        with _opened(path) as file:
            metadata = (file.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
        try:
            names = json.loads(metadata)["info"]["features"][labels]["names"]
            found = path, tuple(map(str, names))
        # Without that metadata, or with other content.
        except (ValueError, LookupError, TypeError, RecursionError):
            continue
        known = known or found
        if found[1] != known[1]:
            raise UserError(
                f"{shown(str(path))} names the classes {shown(found[1])}, and "
                f"{known[0].name} {shown(known[1])}; expected the same names in the "
                "same order in all files"
            )
    return known and known[1]


def _examples(paths: list[Path], images: str, labels: str) -> Iterator[Example]:
    for path in paths:
        row = 0
        with _opened(path) as file:
            if missing := {images, labels}.difference(file.schema_arrow.names):
                raise UserError(
                    f"{shown(str(path))} has no column {shown(min(missing))}, which "
                    "the training data have; expected the same columns in all files"
                )
            try:
                for batch in file.iter_batches(_ROWS, columns=[images, labels]):
                    yield from _rows(batch, path, row)
                    row += len(batch)
            except UserError:
                raise
            except Exception as error:
                raise _damaged(path, error) from None


def _rows(batch: Any, path: Path, first: int) -> Iterator[Example]:
    images, labels = (batch.column(index).to_pylist() for index in range(2))
    for row, (image, label) in enumerate(zip(images, labels, strict=True), first):
        content = image.get("bytes") if isinstance(image, dict) else image
        name = f"row {row} of {shown(str(path))}"
        if not isinstance(content, bytes):
            raise UserError(
                f"{name} has an image that is {shown(content)}; expected the bytes of "
                "an image file"
            )
        if not isinstance(label, int | str):
            raise UserError(
                f"{name} has the label {shown(label)}; expected an integer or a text"
            )
        yield Example(name, content, label)
