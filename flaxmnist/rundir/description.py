"""The description of a run in checkpoints and summaries: options, data, versions."""

import dataclasses
from typing import Any

from flaxmnist import options
from flaxmnist.core import mnist
from flaxmnist.core.batch import MAX_SIDE, ImageShape
from flaxmnist.rundir.changes import CHANGES, Change
from flaxmnist.rundir.schemas import (
    COUNT,
    OBJECT,
    STEP,
    Schema,
    build,
    by_name,
    object_of,
)


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """The data of a run.

    Attributes:
      name: name of the data set.
      source: where its files came from.
      counts: number of examples by split.
      fingerprint: CRC-32 of the training split, in hexadecimal digits.
      fingerprints: the same by split; None in runs of older versions.
      image_shape: height, width and channels.
      class_names: a name per class.
    """

    name: str
    source: str
    counts: dict[str, int]
    fingerprint: str
    fingerprints: dict[str, str] | None = None
    image_shape: ImageShape = mnist.IMAGE_SHAPE
    class_names: tuple[str, ...] = mnist.CLASS_NAMES

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)


def _names(value: Any) -> tuple[str, ...]:
    if not value or not all(isinstance(name, str) for name in value):
        raise TypeError
    return tuple(value)


DESCRIPTION: dict[str, Schema] = {
    "config": OBJECT,
    "dataset": {
        "name": options.text,
        "source": options.text,
        "counts": by_name(COUNT),
        "fingerprint": options.text,
        "fingerprints": options.optional(by_name(options.text)),
        "image_shape": options.optional(options.sizes(3, most=MAX_SIDE)),
        "class_names": options.optional(options.OptionType("names", _names)),
    },
    "total_steps": STEP,
    "changes": options.optional(CHANGES),
    "sources": options.optional(by_name(options.text)),
    "versions": options.optional(by_name(options.text)),
    "machine": options.optional(
        object_of(
            {
                "device": options.text,
                "threads": options.optional(options.whole(1)),
            }
        )
    ),
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
      changes: changes of options up to this step, in order.
      sources: SHA-256 of the source of the user's code, by specification.
    """

    config: dict[str, Any]
    dataset: DatasetInfo
    total_steps: int
    versions: dict[str, str]
    machine: dict[str, Any]
    changes: tuple[Change, ...] = ()
    sources: dict[str, str] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns an object that `json.dumps` accepts.

        Most runs have no `changes` and no `sources`; these are left out if empty.
        """
        values = dataclasses.asdict(self)
        empty = {key for key in ("changes", "sources") if not values[key]}
        return {key: value for key, value in values.items() if key not in empty}


def build_description(found: dict[str, Any]) -> dict[str, Any]:
    """Returns the values of a `Description` that JSON represents differently."""
    return {
        "dataset": build(DatasetInfo, found["dataset"]),
        "versions": found.get("versions") or {},
        "machine": found.get("machine") or {},
        "changes": found.get("changes") or (),
        "sources": found.get("sources") or {},
    }
