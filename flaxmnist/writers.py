"""What a run tells: to the person, to ``metrics.jsonl`` and to TensorBoard."""

import contextlib
import io
import json
import os
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter


def write_text(path: Path, content: str) -> None:
    """Writes a whole file or nothing: under another name first, then renamed."""
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("w") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


class EventFile:
    """A TensorBoard event file, written at once.

    TensorBoard's own writer queues: what it was given would not survive the process
    being killed.

    Args:
      folder: gets a new file.
      step: what older files hold of later steps is not shown.
    """

    def __init__(self, folder: Path, step: int):
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names.
        maker = f"{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter(
            (folder / f"events.out.tfevents.{maker}").open("xb")
        )
        self._write(file_version="brain.Event:2")
        self._write(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def _write(self, **content: Any) -> None:
        event = Event(wall_time=time.time(), **content)
        self._records.write(event.SerializeToString())

    def write(self, step: int, *summaries: Summary) -> None:
        """Writes summaries, and sees them to disk."""
        for summary in summaries:
            self._write(step=step, summary=summary)
        self._records.flush()

    def close(self) -> None:
        """Flushes and closes the file."""
        self._records.close()


class MetricsWriter:
    """Appends records to ``metrics.jsonl`` and to TensorBoard's event files.

    A context manager. Of several processes, the first alone writes.

    Args:
      workdir: folder of the run.
      step: where the run resumes; what an earlier process wrote of later steps is
        taken back, for it will be written again.
      eval_splits: those that are evaluated while training.
    """

    def __init__(self, workdir: Path, step: int, eval_splits: Iterable[str]):
        self._stack = contextlib.ExitStack()
        if jax.process_index() != 0:
            return
        path = workdir / "metrics.jsonl"
        if path.exists():
            write_text(path, "".join(_until(path, step)))
        self._file = self._stack.enter_context(path.open("a"))
        self._events = {}
        # Those of an earlier process, too, whose later steps are taken back.
        before = (path.name for path in workdir.glob("tensorboard/*/"))
        for split in {"train", *map(eval_name, eval_splits), *before}:
            events = EventFile(workdir / "tensorboard" / split, step)
            self._events[split] = self._stack.enter_context(contextlib.closing(events))

    def write(self, record: dict[str, Any]) -> None:
        """Writes a record, which holds ``step``, ``split`` and figures."""
        if jax.process_index() != 0:
            return
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()
        self._events[record["split"]].write(
            record["step"],
            *(
                _summary(name, simple_value=value)
                for name, value in record.items()
                if name not in ("step", "split")
            ),
        )

    def show(self, split: str, step: int, *summaries: Summary) -> None:
        """Writes :func:`histogram`, :func:`image` and :func:`text` for TensorBoard."""
        if jax.process_index() == 0:
            self._events[split].write(step, *summaries)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()


def eval_name(split: str) -> str:
    """Returns what the figures of a split's evaluation are written under.

    "train" are those of training itself, of parameters that move and with dropout.
    """
    return "train_eval" if split == "train" else split


def _summary(name: str, **value: Any) -> Summary:
    return Summary(value=[Summary.Value(tag=name, **value)])


def histogram(name: str, values: np.ndarray) -> Summary:
    """Returns a summary of how numbers are distributed."""
    values = np.asarray(values, np.float64)
    counts, edges = np.histogram(values, bins=64)
    histo = HistogramProto(
        min=edges[0],
        max=edges[-1],
        num=values.size,
        sum=values.sum(),
        sum_squares=np.square(values).sum(),
        bucket_limit=edges[1:],
        bucket=counts,
    )
    return _summary(name, histo=histo)


def image(name: str, pixels: np.ndarray) -> Summary:
    """Returns a summary of a picture, uint8 `[height, width]`."""
    height, width = pixels.shape
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, format="PNG")
    content = Summary.Image(
        height=height, width=width, colorspace=1, encoded_image_string=png.getvalue()
    )
    return _summary(name, image=content)


def text(name: str, markdown: str) -> Summary:
    """Returns a summary of a text."""
    return text_pb(name, markdown)


def _until(path: Path, step: int) -> Iterator[str]:
    for line in path.read_text(errors="replace").splitlines():
        # The last line of a killed process may be cut.
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if json.loads(line)["step"] <= step:
                yield line + "\n"


class Console:
    """Speaks to a person: a live bar on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self._rich = RichConsole(
            highlight=False, markup=False, force_terminal=sys.stdout.isatty()
        )
        self._bar: Progress | None = None

    def line(self, text: str = "") -> None:
        """Prints a line, above the bar if there is one."""
        if self._rich.is_terminal:
            self._rich.print(text, soft_wrap=True)
        else:
            print(text, flush=True)

    def warn(self, text: str) -> None:
        """Prints a warning between rules, on the error stream."""
        rule = "!" * 78
        lines = "\n".join(f"! {line}" for line in text.splitlines())
        print(f"{rule}\n{lines}\n{rule}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def progress(self, step: int, total: int) -> Iterator[None]:
        """Shows a bar on a terminal while the block runs."""
        if not self._rich.is_terminal:
            yield
            return
        self._bar = Progress(
            TextColumn("{task.fields[epoch]}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[figures]}"),
            TextColumn("ETA"),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            console=self._rich,
            transient=True,
            expand=True,
        )
        with self._bar:
            self._bar.add_task("", completed=step, total=total, epoch="", figures="")
            yield
        self._bar = None

    def update(self, record: dict[str, Any]) -> None:
        """Moves the bar to where training is."""
        if self._bar:
            self._bar.update(
                self._bar.task_ids[0],
                completed=record["step"],
                epoch=f"epoch {record['epoch']:.1f}",
                figures=f"loss {record['loss']:.3f} accuracy {record['accuracy']:.3f} "
                f"{record['images_per_second']:,.0f} images/s",
            )

    def report(self, record: dict[str, Any], total: int) -> None:
        """Prints a record as a line; on a terminal, training's are the bar's alone."""
        if self._bar and record["split"] == "train":
            return
        text = (
            f"step {record['step']}/{total}  epoch {record['epoch']:.2f}  "
            f"{record['split']:<10}  loss {record['loss']:.4f}  "
            f"accuracy {record['accuracy']:.4f}"
        )
        if "images_per_second" in record:
            text += (
                f"  {record['images_per_second']:,.0f} images/s"
                f"  learning rate {record['learning_rate']:.2e}"
            )
        self.line(text)


class Clock:
    """Adds up wall-clock seconds by what they were spent on."""

    def __init__(self, started: float | None = None):
        self._started = time.time() if started is None else started
        self.seconds = {"startup": 0.0, "compile": 0.0, "train": 0.0, "evaluate": 0.0}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Counts the block's seconds under `name`."""
        begin = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - begin

    def started_up(self) -> None:
        """Counts all until now as start-up, but what was counted already."""
        self.seconds["startup"] = (
            time.time() - self._started - sum(self.seconds.values())
        )

    def table(self) -> dict[str, float]:
        """Returns seconds by name, with ``other`` and ``total``."""
        total = time.time() - self._started
        rest = max(0.0, total - sum(self.seconds.values()))
        table = self.seconds | {"other": rest, "total": total}
        return {name: round(value, 3) for name, value in table.items()}
