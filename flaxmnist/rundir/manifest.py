"""Typed contents of a run's JSON files, and the schema that each file is read with."""

import dataclasses
import json
import zlib
from pathlib import Path
from typing import Any

from flaxmnist import config as configs
from flaxmnist import options
from flaxmnist.data import SPLITS
from flaxmnist.errors import UserError
from flaxmnist.runtime import files

# Format 1 had no number, no checksum of the manifest and no validation figures.
FORMAT = 2


def _object(schema: options.Schema) -> options.OptionType:
    return options.OptionType("an object", lambda value: options.conform(value, schema))


_COUNT = options.whole(0, below=2**63)
_STEP = options.whole(0, below=options.MAX_STEPS)
_ANY_OBJECT = options.OptionType("an object", lambda value: {**value})
# The loss of a checkpoint may be infinite or NaN, that of a summary may not.
_FIGURES: options.Schema = {
    "loss": options.number,
    "accuracy": options.share,
    "count": _COUNT,
}
_FINITE_FIGURES: options.Schema = {
    "loss": options.real(0, below=3.5e38),
    "accuracy": options.share,
    "count": options.whole(1, below=2**63),
}


@dataclasses.dataclass(frozen=True)
class Figures:
    """What one pass over examples measured.

    Attributes:
      loss: mean cross-entropy in nats.
      accuracy: share of correct predictions, from 0 to 1.
      count: number of examples.
    """

    loss: float
    accuracy: float
    count: int

    @classmethod
    def from_json(cls, value: Any) -> "Figures":
        """Reads the figures of a checkpoint.

        Raises:
          ValueError: `value` has another form.
        """
        return _build(cls, options.conform(value, _FIGURES))

    @property
    def rank(self) -> float:
        """Orders evaluations: a higher accuracy is better, then a lower loss."""
        # Accuracies differ by at least one example, which is far more than 1e-5.
        return self.accuracy - 1e-7 * min(self.loss, 100.0)


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


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """The data of a run.

    Attributes:
      name: name of the data set.
      source: where its files came from.
      counts: number of examples by split.
      fingerprint: CRC-32 of the training split, in hexadecimal digits.
      fingerprints: the same by split; None in runs of older versions.
    """

    name: str
    source: str
    counts: dict[str, int]
    fingerprint: str
    fingerprints: dict[str, str] | None = None


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """The name of a model and its number of parameters."""

    name: str
    parameters: int


@dataclasses.dataclass(frozen=True)
class DevicesInfo:
    """Platform, kind and number of the devices that a run used."""

    platform: str
    kind: str
    count: int


_DESCRIPTION: dict[str, options.Schema] = {
    "config": _ANY_OBJECT,
    "dataset": {
        "name": options.text,
        "source": options.text,
        "counts": options.by_name(_COUNT),
        "fingerprint": options.text,
        "fingerprints": options.optional(options.by_name(options.text)),
    },
    "total_steps": _STEP,
    "versions": options.optional(options.by_name(options.text)),
    "machine": options.optional(
        _object(
            {
                "device": options.text,
                "threads": options.optional(options.whole(1)),
            }
        )
    ),
}
_MANIFEST: options.Schema = {
    **_DESCRIPTION,
    "best": {
        "validation": options.optional(_object(_FIGURES)),
        "step": options.optional(_STEP),
        "waited": _STEP,
    },
    "rollbacks": options.optional(_STEP),
    "metrics": options.optional(_object({"lines": _COUNT, "checksum": _COUNT})),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """Configuration, data, versions and machine of a run.

    Attributes:
      config: all options, as ``config.json`` has them.
      dataset: the data.
      total_steps: number of steps of a complete run.
      versions: version by package.
      machine: `device` and, on CPU, number of `threads`; empty in runs of older
        versions.
    """

    config: dict[str, Any]
    dataset: DatasetInfo
    total_steps: int
    versions: dict[str, str]
    machine: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Returns an object that `json.dumps` accepts."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest(Description):
    """What a checkpoint records beside its arrays.

    Attributes:
      best: the best evaluation up to this step.
      rollbacks: number of times a non-finite loss caused a return to a checkpoint.
      metrics: length of ``metrics.jsonl`` at this step, if known.
    """

    best: Best
    rollbacks: int = 0
    metrics: LogPosition | None = None

    @classmethod
    def from_json(cls, value: Any) -> "Manifest":
        """Reads the manifest of a checkpoint.

        Raises:
          ValueError: `value` has another form.
        """
        found = options.conform(value, _MANIFEST)
        best, metrics = found["best"], found.get("metrics")
        validation = best.get("validation")
        found |= {
            **_described(found),
            "best": Best(
                validation and _build(Figures, validation),
                best.get("step"),
                best["waited"],
            ),
            "rollbacks": found.get("rollbacks") or 0,
            "metrics": metrics and _build(LogPosition, metrics),
        }
        return _build(cls, found)


def _seconds(value: Any) -> dict[str, float]:
    seconds = options.by_name(options.real(0, below=1e12)).convert(value)
    if not seconds.get("total"):
        raise ValueError
    return seconds


_SUMMARY: options.Schema = {
    **_DESCRIPTION,
    "config": options.OptionType(
        "a configuration", lambda value: configs.as_dict(configs.from_dict(value))
    ),
    "versions": options.by_name(options.text),
    "model": {"name": options.text, "parameters": _COUNT},
    "step": _STEP,
    "evaluated_step": _STEP,
    **dict.fromkeys(SPLITS, _FINITE_FIGURES),
    "devices": {"platform": options.text, "kind": options.text, "count": _COUNT},
    "seconds": options.optional(
        options.OptionType("seconds by name, and their total", _seconds)
    ),
    "images_per_second": options.optional(options.real(0, below=1e15)),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary(Description):
    """The result of a run: the content of ``summary.json``.

    Attributes:
      model: its name and size.
      step: last step trained.
      evaluated_step: step of the parameters that were evaluated.
      train: figures of the training split.
      validation: figures of the validation split.
      test: figures of the test split.
      devices: what the run used.
      seconds: elapsed time by activity, with ``total``; None if nothing was trained.
      images_per_second: training speed; None if nothing was trained.
    """

    model: ModelInfo
    step: int
    evaluated_step: int
    train: Figures
    validation: Figures
    test: Figures
    devices: DevicesInfo
    seconds: dict[str, float] | None = None
    images_per_second: float | None = None

    @classmethod
    def from_json(cls, value: Any) -> "Summary":
        """Reads the content of ``summary.json``.

        Raises:
          ValueError: `value` has another form.
        """
        found = options.conform(value, _SUMMARY)
        if missing := set(SPLITS) - found["dataset"]["counts"].keys():
            raise ValueError(f"no count of the examples of {min(missing)}")
        found |= {
            **_described(found),
            "model": _build(ModelInfo, found["model"]),
            "devices": _build(DevicesInfo, found["devices"]),
            **{split: _build(Figures, found[split]) for split in SPLITS},
        }
        return _build(cls, found)


def _described(found: dict[str, Any]) -> dict[str, Any]:
    return {
        "dataset": _build(DatasetInfo, found["dataset"]),
        "versions": found.get("versions") or {},
        "machine": found.get("machine") or {},
    }


def _build(cls: Any, values: dict[str, Any]) -> Any:
    """Builds a dataclass; a missing value is None, an unknown one is ignored."""
    names = (field.name for field in dataclasses.fields(cls))
    return cls(**{name: values.get(name) for name in names})


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
    record = files.read_json(folder / "metadata")
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
