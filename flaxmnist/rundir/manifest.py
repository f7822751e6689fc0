"""The manifest of a checkpoint: its content, its format and its checksum."""

import dataclasses
import json
import zlib
from pathlib import Path
from typing import Any

from flaxmnist import options
from flaxmnist.data.order import START, Origin
from flaxmnist.errors import UserError
from flaxmnist.rundir.description import DESCRIPTION, Description, build_description
from flaxmnist.rundir.results import FIGURES, Figures
from flaxmnist.rundir.schemas import COUNT, STEP, Schema, build, conform, object_of
from flaxmnist.runtime import files

# Format 1 had no number, no checksum of the manifest and no validation figures.
FORMAT = 2


@dataclasses.dataclass(frozen=True)
class Best:
    """The best evaluation on validation so far.

    Attributes:
      validation: its figures; None before the first evaluation.
      step: its step; None before the first evaluation.
      waited: number of evaluations since then.
    """

    validation: Figures | None = None
    step: int | None = None
    waited: int = 0

    def updated(self, validation: Figures, step: int) -> "Best":
        """Returns the best evaluation after one more."""
        if self.validation is None or validation.rank > self.validation.rank:
            return Best(validation, step)
        return dataclasses.replace(self, waited=self.waited + 1)


@dataclasses.dataclass(frozen=True)
class LogPosition:
    """The length of ``metrics.jsonl``.

    Attributes:
      lines: number of lines.
      checksum: CRC-32 of these lines.
    """

    lines: int = 0
    checksum: int = 0


_MANIFEST: Schema = {
    **DESCRIPTION,
    "best": {
        "validation": options.optional(object_of(FIGURES)),
        "step": options.optional(STEP),
        "waited": STEP,
    },
    "rollbacks": options.optional(STEP),
    "metrics": options.optional(object_of({"lines": COUNT, "checksum": COUNT})),
    "origin": options.optional(
        object_of({"step": STEP, "epoch": COUNT, "offset": COUNT})
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest(Description):
    """What a checkpoint records beside its arrays.

    Attributes:
      best: the best evaluation up to this step.
      rollbacks: number of times a non-finite loss caused a return to a checkpoint.
      metrics: length of ``metrics.jsonl`` at this step, if known.
      origin: where the run began to use its batch size.
    """

    best: Best
    rollbacks: int = 0
    metrics: LogPosition | None = None
    origin: Origin = START

    @classmethod
    def from_json(cls, value: Any) -> "Manifest":
        """Reads the manifest of a checkpoint.

        Raises:
          ValueError: `value` has another form.
        """
        found = conform(value, _MANIFEST)
        best, metrics = found["best"], found.get("metrics")
        origin = found.get("origin")
        validation = best.get("validation")
        found |= {
            **build_description(found),
            "best": Best(
                validation and build(Figures, validation),
                best.get("step"),
                best["waited"],
            ),
            "rollbacks": found.get("rollbacks") or 0,
            "metrics": metrics and build(LogPosition, metrics),
            "origin": origin and build(Origin, origin),
        }
        return build(cls, found)


def canonical_json(record: Any) -> str:
    """Returns JSON that is the same for equal records."""
    return json.dumps(record, sort_keys=True)


def with_checksum(record: dict[str, Any]) -> dict[str, Any]:
    """Returns the record with its format and a CRC-32 of its content."""
    record = record | {"format": FORMAT}
    return record | {"checksum": zlib.crc32(canonical_json(record).encode())}


def read_record(folder: Path) -> dict[str, Any]:
    """Returns the record that Orbax wrote into `folder`, without its checksum.

    Raises:
      UserError: a newer version of this library wrote it.
      Exception: it is damaged.
    """
    record: dict[str, Any] = files.read_json(folder / "metadata")
    checksum = record.pop("checksum", None)
    version = record.get("format", 1)
    if checksum != (
        None if version == 1 else zlib.crc32(canonical_json(record).encode())
    ):
        raise ValueError("the checksum of its record differs")
    if version > FORMAT:
        raise UserError(
            f"the checkpoint {folder.parent} is of format {version}, and this version "
            f"reads up to {FORMAT}: use flaxmnist {record['versions']['flaxmnist']}, "
            "which saved it, or a newer one"
        )
    return record
