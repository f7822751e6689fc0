"""TensorBoard's event files, and the summaries in them."""

import io
import os
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from flaxmnist.runtime import durable


class EventFile:
    """A TensorBoard event file, written at once.

    TensorBoard's own writer queues: what it was given would not survive the process
    being killed.

    Args:
      folder: gets a new file.
      step: what older files hold of later steps is not shown.
    """

    def __init__(self, folder: Path, step: int):
        durable.make_directory(folder)
        # TensorBoard reads the files of a folder in the order of their names, and a
        # clock may be set back.
        names = (path.name for path in folder.glob("events.out.tfevents.*"))
        stamps = (re.match(r"events\.out\.tfevents\.([0-9]{1,20})\.", n) for n in names)
        last = max((int(found[1]) for found in stamps if found), default=0)
        stamp = max(time.time_ns(), last + 1)
        maker = f"{stamp}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / f"events.out.tfevents.{maker}").open("xb")
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        self._write(step=step + 1, session_log=SessionLog(status=SessionLog.START))
        durable.sync(folder)

    def _write(self, **content: Any) -> None:
        event = Event(wall_time=time.time(), **content)
        self._records.write(event.SerializeToString())

    def write(self, step: int, *summaries: Summary) -> None:
        """Writes summaries to the file."""
        for summary in summaries:
            self._write(step=step, summary=summary)
        self._records.flush()

    def sync(self) -> None:
        """Flushes the file to the disk."""
        self._records.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._records.close()


def options(values: Mapping[str, Any]) -> tuple[Summary, Summary]:
    """Returns the options of a run: for the tab of hyperparameters, and as text.

    Args:
      values: by the full name of the option.
    """
    plain = {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in values.items()
    }
    # Markdown shows indented lines as they are.
    text = "\n".join(f"    {name}: {value}" for name, value in plain.items())
    return hparams_pb(plain), text_pb("config", text)


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
    """Returns a summary of a picture.

    Args:
      name: of the picture.
      pixels: uint8 `[height, width]`, or `[height, width, 3 or 4]` in colour.
    """
    height, width, *channels = pixels.shape
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, format="PNG")
    content = Summary.Image(
        height=height,
        width=width,
        # The number of channels, which are gray, RGB or RGBA.
        colorspace=channels[0] if channels else 1,
        encoded_image_string=png.getvalue(),
    )
    return _summary(name, image=content)
