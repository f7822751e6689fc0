"""The output of a run for people, and its time table."""

import contextlib
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TextColumn

from flaxmnist.errors import UserError, printable
from flaxmnist.runtime import processes

_BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: list[float], width: int = 8) -> str:
    """Returns positive numbers as a row of at most `width` blocks, on a log scale."""
    parts = np.array_split(np.log(np.maximum(values, 1e-8)), min(width, len(values)))
    means = np.array([part.mean() for part in parts])
    heights = (means - means.min()) / max(float(np.ptp(means)), 1e-8)
    return "".join(_BLOCKS[round(7 * height)] for height in heights)


@contextlib.contextmanager
def output_errors() -> Iterator[None]:
    """Raises UserError where the standard output cannot be written."""
    try:
        yield
    except BrokenPipeError:  # The reader has gone, as `head` does.
        raise
    except OSError as error:
        raise UserError(
            f"the standard output cannot be written ({error.strerror}); send it to "
            "another file"
        ) from None


class Console:
    """Prints live bars on a terminal and in a notebook, and plain lines elsewhere.

    Only terminals get colours, unless ``NO_COLOR`` is set. Of several processes, only
    the first prints.
    """

    def __init__(self) -> None:
        self._rich = RichConsole(
            highlight=False,
            markup=False,
            emoji=False,
            force_terminal=sys.stdout.isatty(),
        )
        widgets = self._rich.is_jupyter and find_spec("ipywidgets") is not None
        self._speaks = processes.is_first()
        self._live = self._speaks and (self._rich.is_terminal or widgets)
        self._bars: Progress | None = None

    def line(self, text: str = "") -> None:
        """Prints a line, above the bars if there are any."""
        text = printable(text, keep="\n")
        with output_errors():
            if self._live and self._rich.is_terminal:
                self._rich.print(text, soft_wrap=True)
            elif self._speaks:
                print(text, flush=True)

    def warn(self, text: str) -> None:
        """Prints a warning between rules, on the error stream."""
        if not self._speaks:
            return
        rule = "!" * 78
        lines = "\n".join(f"! {printable(line)}" for line in text.splitlines())
        with contextlib.suppress(OSError):  # The error stream may be on a full disk.
            print(f"{rule}\n{lines}\n{rule}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def _bar(self, total: int, **start: Any) -> Iterator[Callable[..., None]]:
        """Shows a bar while the block runs, below any other; yields what moves it."""
        if not self._live:
            yield lambda **changes: None
            return
        # A notebook's output is drawn by this thread alone, so that lines stay lines.
        notebook = self._rich.is_jupyter
        with contextlib.ExitStack() as stack:
            if self._bars is None:
                self._bars = Progress(
                    TextColumn("{task.description}"),
                    BarColumn(bar_width=None),
                    TextColumn("{task.completed}/{task.total}"),
                    TextColumn("{task.fields[figures]}"),
                    console=self._rich,
                    transient=True,
                    expand=True,
                    auto_refresh=not notebook,
                    redirect_stdout=not notebook,
                    redirect_stderr=not notebook,
                )
                stack.callback(setattr, self, "_bars", None)
                stack.enter_context(self._bars)
            task = self._bars.add_task(total=total, **{"figures": ""} | start)
            yield functools.partial(self._bars.update, task, refresh=notebook)
            self._bars.remove_task(task)

    @contextlib.contextmanager
    def training(self, step: int, total: int) -> Iterator[Callable[..., None]]:
        """Shows the run's bar; yields what is told of a record and the seconds left."""
        losses: list[float] = []
        with self._bar(total, description="", completed=step) as move:

            def update(record: dict[str, Any], seconds_left: float) -> None:
                losses.append(record["loss"])
                eta = timedelta(seconds=round(seconds_left))
                move(
                    completed=record["step"],
                    description=f"epoch {record['epoch']:.1f}",
                    figures=f"loss {record['loss']:.3f} {sparkline(losses)} "
                    f"{record['accuracy']:.1%} "
                    f"{record['images_per_second']:,.0f} images/s ETA {eta}",
                )

            yield update

    @contextlib.contextmanager
    def evaluating(self, split: str, batches: int) -> Iterator[Callable[[int], None]]:
        """Shows a bar; yields what is told of each so many batches more."""
        with self._bar(batches, description=split) as move:
            yield lambda more: move(advance=more)

    def report(self, record: dict[str, Any], total: int) -> None:
        """Prints a record as a line; where there is a bar, training's are its alone."""
        if self._bars and record["split"] == "train":
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


def process_age() -> float:
    """Returns the seconds since this process started.

    On Linux by a clock that is never set, unlike the one that tells the date.
    """
    stat = Path("/proc/self/stat")
    if not stat.exists():
        return time.time() - psutil.Process().create_time()
    # Field 22 of the line, which is counted from the end of the program's name.
    ticks = int(stat.read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


class Clock:
    """Adds up elapsed seconds by what they were spent on.

    Args:
      started: `time.perf_counter()` at the start; now if None.
    """

    def __init__(self, started: float | None = None):
        self._started = time.perf_counter() if started is None else started
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
            time.perf_counter() - self._started - sum(self.seconds.values())
        )

    def table(self) -> dict[str, float]:
        """Returns seconds by name, with ``other`` and ``total``."""
        total = time.perf_counter() - self._started
        rest = max(0.0, total - sum(self.seconds.values()))
        table = self.seconds | {"other": rest, "total": total}
        return {name: round(value, 3) for name, value in table.items()}
