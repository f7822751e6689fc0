"""What a checkpoint says of itself: a JSON record, its format, its checksum."""

import json
import zlib
from pathlib import Path
from typing import Any

from flaxmnist.errors import UserError
from flaxmnist.runtime import files

# Format 1 had no number, and neither a checksum of the record itself nor the figures
# that were measured on validation.
FORMAT = 2


def text(record: Any) -> str:
    """Returns JSON that is the same for equal records."""
    return json.dumps(record, sort_keys=True)


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """Returns the record with its format, and a CRC-32 of all that it says."""
    record = record | {"format": FORMAT}
    return record | {"checksum": zlib.crc32(text(record).encode())}


def read(folder: Path) -> dict[str, Any]:
    """Returns what was sealed, from where Orbax wrote it.

    Raises:
      UserError: it is of a format to come.
      Exception: it is not what was saved.
    """
    record = files.read_json(folder / "metadata")
    checksum = record.pop("checksum", None)
    version = record.get("format", 1)
    if checksum != (None if version == 1 else zlib.crc32(text(record).encode())):
        raise ValueError("the checksum of its record differs")
    if version > FORMAT:
        raise UserError(
            f"the checkpoint {folder.parent} is of format {version}, and this version "
            f"reads up to {FORMAT}: use flaxmnist {record['versions']['flaxmnist']}, "
            "which saved it, or a newer one"
        )
    return record
