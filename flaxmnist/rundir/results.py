"""Typed results of a run, with the schema that each is read with."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from flaxmnist import config as configs
from flaxmnist import options
from flaxmnist.core.calibration import Calibration
from flaxmnist.data import SPLITS
from flaxmnist.errors import UserError
from flaxmnist.rundir.description import DESCRIPTION, Description, build_description
from flaxmnist.rundir.schemas import (
    COUNT,
    STEP,
    Schema,
    build,
    by_name,
    conform,
    number,
    share,
)

# The loss of a checkpoint may be infinite or NaN, that of a summary may not.
FIGURES: Schema = {
    "loss": number,
    "accuracy": share,
    "count": COUNT,
    "metrics": options.optional(by_name(number)),
}
_FINITE_FIGURES: Schema = {
    "loss": options.real(0, below=3.5e38),
    "accuracy": share,
    "count": options.whole(1, below=2**63),
    "metrics": options.optional(by_name(number)),
}


@dataclasses.dataclass(frozen=True)
class Figures:
    """What one pass over examples measured.

    Attributes:
      loss: mean in nats, as in :class:`flaxmnist.rundir.metrics_log.Record`.
      accuracy: share of correct predictions, from 0 to 1.
      count: number of examples.
      metrics: further metrics by name, those of the option `metrics`.
    """

    loss: float
    accuracy: float
    count: int
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, computed: Mapping[str, Any]) -> "Figures":
        """Returns the figures that `Metrics.compute` returned.

        Raises:
          UserError: a further metric is not finite, although the loss is.
        """
        figures = {name: computed[name] for name in ("loss", "accuracy", "count")}
        rest = {name: computed[name] for name in computed if name not in figures}
        # If the loss is not finite either, the model is the cause, not the metric.
        for name, value in rest.items():
            if math.isfinite(figures["loss"]) and not math.isfinite(value):
                raise UserError(
                    f"metrics: the mean of {name} is {value}; expected a function that "
                    "returns a finite value for each example"
                )
        return cls(**figures, metrics=rest)

    def scalars(self) -> dict[str, float]:
        """Returns all figures by name."""
        first = {"loss": self.loss, "accuracy": self.accuracy, "count": self.count}
        return first | self.metrics

    @classmethod
    def from_json(cls, value: Any) -> "Figures":
        """Reads the figures of a checkpoint.

        Raises:
          ValueError: `value` has another form.
        """
        return build(cls, conform(value, FIGURES))

    @property
    def rank(self) -> float:
        """Orders evaluations: a higher accuracy is better, then a lower loss."""
        # Accuracies differ by at least one example, which is far more than 1e-5.
        return self.accuracy - 1e-7 * min(self.loss, 100.0)


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


def _seconds(value: Any) -> dict[str, float]:
    seconds: dict[str, float] = by_name(options.real(0, below=1e12)).convert(value)
    if not seconds.get("total"):
        raise ValueError
    return seconds


_SUMMARY: Schema = {
    **DESCRIPTION,
    "config": options.OptionType(
        "a configuration", lambda value: configs.as_dict(configs.from_dict(value))
    ),
    "versions": by_name(options.text),
    "model": {"name": options.text, "parameters": COUNT},
    "step": STEP,
    "evaluated_step": STEP,
    **dict.fromkeys(SPLITS, _FINITE_FIGURES),
    "devices": {"platform": options.text, "kind": options.text, "count": COUNT},
    "temperature": options.optional(options.real(0, above=True, below=1e6)),
    "energy_limit": options.optional(options.real(-3.5e38, below=3.5e38)),
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
      temperature: divisor of the logits for calibrated probabilities, see
        :mod:`flaxmnist.core.calibration`; None in runs of older versions.
      energy_limit: images of a higher energy are unlike the validation images; None in
        runs of older versions.
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
    temperature: float | None = None
    energy_limit: float | None = None
    seconds: dict[str, float] | None = None
    images_per_second: float | None = None

    @property
    def calibration(self) -> Calibration:
        """The temperature, 1 if it is not known, and the limit of the energy."""
        return Calibration(self.temperature or 1.0, self.energy_limit)

    def scalars(self) -> dict[str, float]:
        """Returns the figures of each split, such as ``{"final/test/loss": 0.018}``."""
        return {
            f"final/{split}/{name}": value
            for split in SPLITS
            for name, value in getattr(self, split).scalars().items()
        }

    @classmethod
    def from_json(cls, value: Any) -> "Summary":
        """Reads the content of ``summary.json``.

        Raises:
          ValueError: `value` has another form.
        """
        found = conform(value, _SUMMARY)
        if missing := set(SPLITS) - found["dataset"]["counts"].keys():
            raise ValueError(f"no count of the examples of {min(missing)}")
        found |= {
            **build_description(found),
            "model": build(ModelInfo, found["model"]),
            "devices": build(DevicesInfo, found["devices"]),
            **{split: build(Figures, found[split]) for split in SPLITS},
        }
        return build(cls, found)
