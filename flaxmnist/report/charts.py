"""What runs logged, as the data of the interactive charts of a page."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# The charts that have a title of their own: unit, and whether the axis is logarithmic.
_CHARTS = {
    "accuracy": ("Accuracy", "%", False),
    "loss": ("Loss", "nats", True),
    "learning_rate": ("Learning rate", "", False),
    "gradient_norm": ("Gradient norm", "", False),
    "parameter_norm": ("Parameter norm", "", False),
    "images_per_second": ("Training speed", "images/s", False),
}
# Figures of training, not of a split.
_OF_TRAINING = {*_CHARTS} - {"accuracy", "loss"}
_NO_CHART = {"step", "epoch", "split"}
# Most points of a line: a chart has fewer pixels.
_MAX_POINTS = 1000
# Most rows of a table of them.
_MAX_ROWS = 30


@dataclasses.dataclass(frozen=True)
class Log:
    """What a run logged.

    Attributes:
      records: the lines of ``metrics.jsonl``.
      examples: number of training examples.
    """

    records: Sequence[dict[str, Any]] = ()
    examples: int = 1

    def seconds(self, steps: np.ndarray) -> np.ndarray:
        """Returns the seconds of training at these steps, without evaluations."""
        at, spent, total, epoch = [0.0], [0.0], 0.0, 0.0
        for record in self.records:
            speed = record.get("images_per_second")
            if speed and "epoch" in record:
                total += (record["epoch"] - epoch) * self.examples / speed
                epoch = record["epoch"]
                at.append(record["step"])
                spent.append(total)
        return np.interp(steps, at, spent)


def charts(groups: Mapping[str, Sequence[Log]]) -> dict[str, Any]:
    """Returns the data of `charts.js`, which `json.dumps` accepts.

    Args:
      groups: logs of runs that differ only in their seeds, by name. Several runs are
        one line, their mean, with a band of one standard deviation.
    """
    logged = {
        name
        for logs in groups.values()
        for log in logs
        for record in log.records
        for name in record
    } - _NO_CHART
    found = []
    for name in [*_CHARTS, *sorted(logged - _CHARTS.keys())]:
        lines = [
            line
            for index, logs in enumerate(groups.values())
            for split in ("train", "train_eval", "validation", "test")
            if (line := _line(logs, split, name, index)) is not None
        ]
        if lines:
            title, unit, is_log = _CHARTS.get(name, (name, "", False))
            is_log = is_log and all(min(line["y"]) > 0 for line in lines)
            for line in lines if is_log else ():
                if line["low"]:
                    # A deviation may exceed the mean; logarithms need positive values.
                    pairs = zip(line["low"], line["y"], strict=True)
                    line["low"] = [max(low, y / 10) for low, y in pairs]
            found.append({"title": title, "unit": unit, "log": is_log, "lines": lines})
    return {"groups": [*groups], "charts": found}


def _line(
    logs: Sequence[Log], split: str, name: str, group: int
) -> dict[str, Any] | None:
    """Returns a line of a chart; None if it has no point that all runs have."""
    by_step = [
        {
            record["step"]: record
            for record in log.records
            if record["split"] == split and name in record
        }
        for log in logs
    ]
    steps = np.array(sorted(set.intersection(*map(set, by_step))) if by_step else [])
    if not len(steps):
        return None
    steps = steps[np.unique(np.linspace(0, len(steps) - 1, _MAX_POINTS).astype(int))]
    scale = 100 if name == "accuracy" else 1
    values = scale * np.array([[one[step][name] for step in steps] for one in by_step])
    mean = values.mean(axis=0)
    spread = values.std(axis=0, ddof=1) if len(logs) > 1 else None
    return {
        "group": group,
        "split": split,
        "step": steps.tolist(),
        "epoch": _short([by_step[0][step].get("epoch", 0) for step in steps]),
        "seconds": _short(np.mean([log.seconds(steps) for log in logs], axis=0)),
        "y": _short(mean),
        "low": None if spread is None else _short(mean - spread),
        "high": None if spread is None else _short(mean + spread),
    }


def _short(values: Any) -> list[float]:
    """Returns numbers with six digits, which a chart cannot tell from more."""
    return [float(f"{value:.6g}") for value in values]


def curve_table(
    records: Sequence[dict[str, Any]],
) -> tuple[list[str], list[tuple[int, list[float | None]]]]:
    """Returns what a run logged, as a table with a row per evaluation.

    The figures of training are those of the last log up to the step.

    Returns:
      the names of the columns, such as ``"train loss"``, and a row for each of at most
      `_MAX_ROWS` steps.
    """
    rows: dict[int, dict[str, float]] = {}
    latest: dict[str, float] = {}
    for record in records:
        split, figures = record["split"], record.keys() - _NO_CHART
        named = {
            name if name in _OF_TRAINING else f"{split} {name}": record[name]
            for name in record
            if name in figures
        }
        if split == "train":
            latest = named
        else:
            row = rows.setdefault(record["step"], dict(latest))
            row |= named
    steps = sorted(rows)
    if len(steps) > _MAX_ROWS:
        places = np.linspace(0, len(steps) - 1, _MAX_ROWS).astype(int)
        steps = [steps[place] for place in places]
    names = [*dict.fromkeys(name for step in steps for name in rows[step])]
    return (
        [name.replace("_", " ") for name in names],
        [(step, [rows[step].get(name) for name in names]) for step in steps],
    )
