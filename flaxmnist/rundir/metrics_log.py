"""The figures of a run: ``metrics.jsonl`` and TensorBoard's event files."""

import contextlib
import dataclasses
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from errno import ENOENT
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary

from flaxmnist import options
from flaxmnist.data import SPLITS
from flaxmnist.rundir import integrity, tensorboard
from flaxmnist.rundir.changes import CHANGE, Change
from flaxmnist.rundir.manifest import LogPosition
from flaxmnist.rundir.schemas import STEP, Schema, conform
from flaxmnist.rundir.tensorboard import EventFile, _summary
from flaxmnist.runtime import durable, files, processes
from flaxmnist.runtime.console import Console

_FIGURE = options.real(-3.5e38, below=3.5e38)  # As in float32.
_RECORD: Schema = {
    "step": STEP,
    "split": options.one_of((*SPLITS, "train_eval")),
    "loss": _FIGURE,
    "accuracy": _FIGURE,
}
_MAX_LINE = 1 << 16


@dataclasses.dataclass(frozen=True)
class Record:
    """A line of ``metrics.jsonl``.

    Attributes:
      step: number of updates made.
      epoch: the same in epochs.
      split: "train" for figures of training itself; "validation", "test" or
        "train_eval" for those of an evaluation.
      loss: mean in nats, of the loss that training minimizes or, in an evaluation, of
        the cross-entropy.
      accuracy: share of correct predictions, from 0 to 1.
      images_per_second: training speed since the last log; None for evaluations.
      learning_rate: of the last update; None for evaluations.
      gradient_norm: of the next update, if `summaries` contains "norms".
      parameter_norm: of the parameters, if `summaries` contains "norms".
      metrics: further metrics by name, those of the option `metrics`.
    """

    step: int
    epoch: float
    split: str
    loss: float
    accuracy: float
    images_per_second: float | None = None
    learning_rate: float | None = None
    gradient_norm: float | None = None
    parameter_norm: float | None = None
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns the values that are not None, and each of `metrics` by its name."""
        values = vars(self) | self.metrics
        del values["metrics"]
        return {name: value for name, value in values.items() if value is not None}

    def scalars(self) -> dict[str, float]:
        """Returns the figures by split, such as ``{"validation/loss": 0.026, …}``."""
        values = self.to_json().items()
        return {
            f"{self.split}/{name}": value
            for name, value in values
            if name not in ("step", "split")
        }


class MetricsWriter:
    """Appends records to ``metrics.jsonl`` and to TensorBoard's event files.

    A context manager. Of several processes, only the first writes.

    Args:
      workdir: the run directory.
      step: step from which the run resumes; records of later steps are removed, because
        they will be written again.
      eval_splits: splits that are evaluated during training.
      written: what `sync` returned at `step`, if known.
      changes: changes of options, in order; a line is written for one at `step`.
      config: options by full name, which TensorBoard shows.
      warn: called with a warning if ``metrics.jsonl`` differs from `written`.
      check: called before each write; raises if nothing may be written any more.
    """

    def __init__(
        self,
        workdir: Path,
        step: int,
        eval_splits: Iterable[str],
        *,
        written: LogPosition | None = None,
        changes: Iterable[Change] = (),
        config: Mapping[str, Any] | None = None,
        warn: Callable[[str], None] = print,
        check: Callable[[], None] = lambda: None,
    ):
        self._stack, self._check = contextlib.ExitStack(), check
        if not processes.is_first():
            return
        check()
        self._path = workdir / "metrics.jsonl"
        there = _lines(self._path) if self._path.exists() else ()
        kept = [
            _line(record)
            for record in there
            # A change at a step follows the checkpoint of the step.
            if record["step"] < step + ("split" in record)
        ]
        self._written = LogPosition()
        for line in kept:
            self._count(line)
        if written is not None and written != self._written:
            warn(_lost(self._path, step, written.lines, len(kept)))
        durable.write_file(self._path, "".join(kept))
        self._file = self._stack.enter_context(self._path.open("a", encoding="utf-8"))
        self._events = {}
        # Also those of an earlier process, whose later steps are removed.
        before = (path.name for path in workdir.glob("tensorboard/*/"))
        for split in {"train", *map(eval_name, eval_splits), *before}:
            events = EventFile(workdir / "tensorboard" / split, step)
            self._events[split] = self._stack.enter_context(contextlib.closing(events))
        if config is not None:
            # Above the directories of the splits, whose figures belong to the options.
            with contextlib.closing(EventFile(workdir / "tensorboard", step)) as events:
                events.write(step, *tensorboard.options(config))
                events.sync()
        for change in changes:
            if change.step == step:
                self._append(dataclasses.asdict(change))

    def _append(self, record: dict[str, Any]) -> None:
        line = _line(record)
        self._file.write(line)
        self._file.flush()
        self._count(line)

    def _count(self, line: str) -> None:
        lines, checksum = self._written.lines, self._written.checksum
        self._written = LogPosition(lines + 1, zlib.crc32(line.encode(), checksum))

    def write(self, record: Record) -> None:
        """Writes a record to ``metrics.jsonl`` and to the event file of its split."""
        if not processes.is_first():
            return
        self._check()
        # Writing to a file that was removed raises no error.
        if not os.path.samefile(self._file.fileno(), self._path):
            raise FileNotFoundError(ENOENT, os.strerror(ENOENT), str(self._path))
        self._append(values := record.to_json())
        self._events[record.split].write(
            record.step,
            *(
                _summary(name, simple_value=value)
                for name, value in values.items()
                if name not in ("step", "split")
            ),
        )

    def show(self, split: str, step: int, *summaries: Summary) -> None:
        """Writes summaries of `flaxmnist.rundir.tensorboard` to the file of a split."""
        if processes.is_first():
            self._events[split].write(step, *summaries)

    def sync(self) -> LogPosition | None:
        """Flushes everything written to the disk and returns the length of the file.

        Processes other than the first return None.
        """
        if not processes.is_first():
            return None
        os.fsync(self._file.fileno())
        for events in self._events.values():
            events.sync()
        return self._written

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()


def eval_name(split: str) -> str:
    """Returns the name under which the evaluation of a split is logged.

    "train" stands for the figures of training itself: the parameters change from step
    to step, and dropout is active.
    """
    return "train_eval" if split == "train" else split


def _lost(path: Path, step: int, written: int, left: int) -> str:
    """Returns the warning about lines that were removed or changed."""
    what = f"{written - left:,} of {written:,} lines are missing"
    if left >= written:
        what = f"its {left:,} lines differ from the {written:,} that were written"
    return (
        f"{path} was changed since step {step} was saved: up to that step, {what}.\n"
        "Training is not affected; the curves in the report are."
    )


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def records(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the figures of a ``metrics.jsonl``; warns of lines that are damaged.

    Raises:
      OSError: the file cannot be opened.
      UserError: it is not a regular file, or too large.
    """
    return (record for record in _lines(path) if "split" in record)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the lines of a ``metrics.jsonl``: figures, and changes of options."""
    damaged = 0
    with files.open_regular(path, integrity.MAX_METRICS) as file:
        while line := file.readline(_MAX_LINE):
            try:
                record = files.parse_json(line)
                _check(record)
            except ValueError:
                # A killed process may have written a part of its last line.
                damaged += line.endswith(b"\n") or len(line) == _MAX_LINE
            else:
                yield record
    if damaged:
        Console().warn(f"{path}: damaged lines, which are skipped: {damaged:,}")


def _check(record: Any) -> None:
    """Raises ValueError unless `record` is a line of figures or a change."""
    if isinstance(record, dict) and "options" in record:
        conform(record, CHANGE)
        return
    conform(record, _RECORD)
    for name in record.keys() - {"split"}:
        conform(record[name], _FIGURE)
