"""Changes of the options of a run, which its checkpoints and its summary record."""

import dataclasses
import json
from typing import Any

from flaxmnist import config as configs
from flaxmnist import options as types
from flaxmnist.rundir.schemas import STEP, Schema, by_name, conform


@dataclasses.dataclass(frozen=True)
class Change:
    """A change of options between two processes of a run.

    Attributes:
      step: number of updates made before.
      options: the former and the present value by the full name of the option, such as
        ``{"batch_size": (100, 50)}``; None for an option that did not exist. For the
        source of the user's code, the first digits of its SHA-256.
    """

    step: int
    options: dict[str, tuple[Any, Any]]

    def __str__(self) -> str:
        return ", ".join(
            f"{name} {old} → {new}" for name, (old, new) in self.options.items()
        )


def _pair(value: Any) -> tuple[Any, Any]:
    old, new = value
    return old, new


CHANGE: Schema = {
    "step": STEP,
    "options": by_name(types.OptionType("the former and the present value", _pair)),
}


def _changes(values: Any) -> tuple[Change, ...]:
    found = (conform(value, CHANGE) for value in values)
    return tuple(Change(one["step"], one["options"]) for one in found)


CHANGES = types.OptionType("a list of changes", _changes)


def changes_at(
    step: int, before: configs.Config, sources: dict[str, str], now: configs.Config
) -> tuple[Change, ...]:
    """Returns the change from one configuration to another, or nothing if none.

    Args:
      step: number of updates made before.
      before: the former configuration.
      sources: SHA-256 of the former sources of the user's code, by specification.
      now: the present configuration.
    """
    found = configs.changed_options(before, now)
    for spec, sha256 in configs.sources(now).items():
        if (former := sources.get(spec, sha256)) != sha256:
            found[f"source of {spec}"] = former[:12], sha256[:12]
    if not found:
        return ()
    # The same as if read again: JSON has no tuples.
    options: dict[str, Any] = json.loads(json.dumps(found))
    return (Change(step, {name: _pair(values) for name, values in options.items()}),)
