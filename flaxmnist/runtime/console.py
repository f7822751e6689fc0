"""Terminal and notebook output of a run, and its time table."""

import contextlib
import functools
import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TextColumn

from flaxmnist.errors import UserError, printable
from flaxmnist.runtime import processes

_BLOCKS, _COMPILING = "▁▂▃▄▅▆▇█", "compiling …"
# Called with step, epoch, loss and further figures, the most important first.
Bar = Callable[[int, float, float, Sequence[str]], None]
# Columns of the shortest progress bar, and of the spaces beside it.
_BAR_COLUMNS = 8
# Losses that a progress bar keeps at most; each update draws all of them.
_MAX_LOSSES = 1_024
# The warnings that a block of `warned_once` has printed.
_warned: ContextVar[set[str] | None] = ContextVar("_warned", default=None)


def sparkline(values: list[float], width: int = 8) -> str:
    """Returns positive numbers as a row of at most `width` blocks, on a log scale."""
    parts = np.array_split(np.log(np.maximum(values, 1e-8)), min(width, len(values)))
    means = np.array([part.mean() for part in parts])
    heights = (means - means.min()) / max(float(np.ptp(means)), 1e-8)
    return "".join(_BLOCKS[round(7 * height)] for height in heights)


def _fitting(texts: Sequence[str], columns: int) -> str:
    """Returns the first texts in one line of at most `columns` characters."""
    count = len(texts)
    while count > 1 and len(" ".join(texts[:count])) > columns:
        count -= 1
    return " ".join(texts[:count])


def _wrapped(text: str, columns: int) -> str:
    """Returns text whose lines break between words; a longer word is kept whole."""
    return "\n".join(
        "\n".join(
            textwrap.wrap(
                line,
                columns,
                subsequent_indent="  ",
                break_long_words=False,
                break_on_hyphens=False,
            )
        )
        for line in text.split("\n")
    )


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


@contextlib.contextmanager
def warned_once() -> Iterator[None]:
    """Prints a warning that several runs in the block share once."""
    printed = _warned.get()
    token = _warned.set(set() if printed is None else printed)
    try:
        yield
    finally:
        _warned.reset(token)


class Console:
    """Prints progress bars on a terminal and in a notebook, and lines elsewhere.

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
        # A dumb terminal cannot move its cursor.
        terminal = self._rich.is_terminal and not self._rich.is_dumb_terminal
        widgets = self._rich.is_jupyter and find_spec("ipywidgets") is not None
        self._prints = processes.is_first()
        self._live = self._prints and (terminal or widgets)
        self._bars: Progress | None = None

    def line(self, text: str = "", wrap: bool = True) -> None:
        """Prints a line, above the progress bars if there are any.

        Args:
          text: one line or several.
          wrap: whether to break lines at the width of a terminal; False for text that
            programs read.
        """
        text = printable(text, keep="\n")
        if wrap and self._rich.is_terminal:
            text = _wrapped(text, self._rich.width)
        with output_errors():
            if self._live and self._rich.is_terminal:
                self._rich.print(text, soft_wrap=True)
            elif self._prints:
                print(text, flush=True)

    def warn(self, text: str) -> None:
        """Prints a warning between rules, on the error stream."""
        printed = _warned.get()
        if not self._prints or (printed and text in printed):
            return
        if printed is not None:
            printed.add(text)
        rule = "!" * 78
        lines = "\n".join(f"! {printable(line)}" for line in text.splitlines())
        with contextlib.suppress(OSError):  # The error stream may be on a full disk.
            print(f"{rule}\n{lines}\n{rule}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def _bar(self, total: int, **start: Any) -> Iterator[Callable[..., None]]:
        """Shows a progress bar below any other; yields a function that updates it."""
        if not self._live:
            yield lambda **changes: None
            return
        # Only this thread draws in a notebook; otherwise lines would be broken.
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
    def training(self, step: int, total: int) -> Iterator[Bar]:
        """Shows the progress bar of training; yields what updates it."""
        losses: list[float] = []
        updates, interval = 0, 1
        with self._bar(total, description=_COMPILING, completed=step) as move:

            def update(
                step: int, epoch: float, loss: float, figures: Sequence[str]
            ) -> None:
                nonlocal updates, interval
                if not self._live:
                    return
                if updates % interval == 0:
                    losses.append(loss)
                updates += 1
                if len(losses) == _MAX_LOSSES:
                    del losses[1::2]
                    interval *= 2
                description = f"epoch {epoch:.1f}"
                taken = len(description) + len(f"{step}/{total}") + _BAR_COLUMNS
                found = [f"loss {loss:.3f}", *figures, f"{sparkline(losses):<8}"]
                move(
                    completed=step,
                    description=description,
                    figures=_fitting(found, self._rich.width - taken),
                )

            yield update

    @contextlib.contextmanager
    def compiling(self, total: int) -> Iterator[None]:
        """Shows that the program of training is compiled, before its first step."""
        with self._bar(total, description=_COMPILING):
            yield

    @contextlib.contextmanager
    def evaluating(self, split: str, batches: int) -> Iterator[Callable[[int], None]]:
        """Shows a progress bar; yields a function that adds a number of batches."""
        with self._bar(batches, description=split) as move:
            yield lambda more: move(advance=more)

    def line_without_bar(self, text: str) -> None:
        """Prints a line where no progress bar shows its content."""
        if not self._bars:
            self.line(text)


def process_age() -> float:
    """Returns the seconds since this process started.

    On Linux, the clock is monotonic: setting the date does not change it.
    """
    stat = Path("/proc/self/stat")
    if not stat.exists():
        return time.time() - psutil.Process().create_time()
    # Field 22 of the line; the program's name may contain spaces.
    ticks = int(stat.read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


class Clock:
    """Adds up elapsed seconds by activity.

    Args:
      started: `time.perf_counter()` at the start; now if None.
    """

    def __init__(self, started: float | None = None):
        self._started = time.perf_counter() if started is None else started
        self.seconds = {"startup": 0.0, "compile": 0.0, "train": 0.0, "evaluate": 0.0}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Adds the seconds of the block to `name`."""
        begin = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - begin

    def started_up(self) -> None:
        """Adds all seconds so far that were not counted yet to start-up."""
        self.seconds["startup"] = (
            time.perf_counter() - self._started - sum(self.seconds.values())
        )

    def table(self) -> dict[str, float]:
        """Returns seconds by name, with ``other`` and ``total``."""
        total = time.perf_counter() - self._started
        rest = max(0.0, total - sum(self.seconds.values()))
        table = self.seconds | {"other": rest, "total": total}
        return {name: round(value, 3) for name, value in table.items()}
