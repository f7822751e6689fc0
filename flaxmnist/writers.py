"""What a run writes: ``metrics.jsonl`` and TensorBoard's event files."""

import contextlib
import io
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator
from errno import ENOENT
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from flaxmnist import distributed


def write_file(path: Path, content: str | bytes) -> None:
    """Writes a whole file or nothing: under another name first, then renamed."""
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
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
        # TensorBoard reads the files of a folder in the order of their names, and a
        # clock may be set back.
        names = (path.name.split(".") for path in folder.glob("events.out.tfevents.*"))
        last = max((int(name[3]) for name in names if name[3].isdigit()), default=0)
        stamp = max(time.time_ns(), last + 1)
        maker = f"{stamp}.{socket.gethostname()}.{os.getpid()}"
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
        if not distributed.is_first():
            return
        path = workdir / "metrics.jsonl"
        if path.exists():
            kept = [record for record in records(path) if record["step"] <= step]
            write_file(path, "".join(map(_line, kept)))
        self._path, self._file = path, self._stack.enter_context(path.open("a"))
        self._events = {}
        # Those of an earlier process, too, whose later steps are taken back.
        before = (path.name for path in workdir.glob("tensorboard/*/"))
        for split in {"train", *map(eval_name, eval_splits), *before}:
            events = EventFile(workdir / "tensorboard" / split, step)
            self._events[split] = self._stack.enter_context(contextlib.closing(events))

    def write(self, record: dict[str, Any]) -> None:
        """Writes a record, which holds ``step``, ``split`` and figures."""
        if not distributed.is_first():
            return
        # What is written into a file that was removed is lost without an error.
        if not os.path.samefile(self._file.fileno(), self._path):
            raise FileNotFoundError(ENOENT, os.strerror(ENOENT), str(self._path))
        self._file.write(_line(record))
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
        if distributed.is_first():
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


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


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


def records(path: Path) -> Iterator[dict[str, Any]]:
    """Yields what a ``metrics.jsonl`` holds."""
    for line in path.read_text(errors="replace").splitlines():
        # The last line of a killed process may be cut.
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and "step" in record:
                yield record
