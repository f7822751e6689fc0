"""The exceptions of flaxmnist, and functions for their messages."""

import contextlib
import difflib
import os
import re
import traceback
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


class UserError(Exception):
    """A mistake of the user; the message names it and says what to do."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns ``"; did you mean 'adam'? Valid names: adam, adamw, sgd"``."""
    known = sorted(known)
    if not known:
        return ". No name is valid"
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    # A long list does not help.
    return f"{hint} Valid names: {', '.join(known)}" if len(known) < 30 else hint


def shown(value: Any) -> str:
    """Returns `repr(value)` on one line, cut where it is long."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    text = re.sub(r"\s*\n\s*", " ", text)  # Of an array.
    return text if len(text) <= 200 else f"{text[:200]}…"


def printable(text: str, keep: str = "") -> str:
    """Returns `text` with unprintable characters escaped, except those in `keep`.

    A file name may contain line breaks and control sequences of a terminal.
    """

    def shown(char: str) -> bool:
        return char.isprintable() or char in keep or unicodedata.category(char) == "Zs"

    return "".join(
        char if shown(char) else char.encode("unicode_escape").decode() for char in text
    )


def dtype_and_shape(array: Any) -> str:
    """Returns dtype and shape, such as ``"float32 [100, 10]"``."""
    return f"{array.dtype} [{', '.join(map(str, array.shape))}]"


@contextlib.contextmanager
def explained(prefix: str, module: str | None = None) -> Iterator[None]:
    """Turns an exception of the user's code into a UserError that names its line.

    Args:
      prefix: of the message.
      module: whose absence is not an error of its code.
    """
    try:
        yield
    except UserError:
        raise
    # The code is the user's: it may raise anything.
    except (Exception, SystemExit) as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name
        if module and missing and f"{module}.".startswith(f"{missing}."):
            raise
        raise UserError(
            f"{prefix}{_place_of(error)}{type(error).__name__}: {error}"
        ) from error


def _place_of(error: BaseException) -> str:
    """Returns the last place in the user's code, such as ``"my.py, line 3: "``."""
    frames = [
        (frame.filename, frame.lineno)
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<")
    ]
    if isinstance(error, SyntaxError) and error.filename:
        frames.append((error.filename, error.lineno))
    package = Path(__file__).parent
    frames = [frame for frame in frames if package not in Path(frame[0]).parents]
    # The code of the user may be installed, too.
    own = [frame for frame in frames if not _is_library(Path(frame[0]))] or frames
    return f"{own[-1][0]}, line {own[-1][1]}: " if own else ""


def _is_library(file: Path) -> bool:
    """Returns whether a file is installed, or a part of Python."""
    is_installed = not {"site-packages", "dist-packages"}.isdisjoint(file.parts)
    return is_installed or Path(os.__file__).parent in file.parents


class StoppedError(KeyboardInterrupt):
    """A run was stopped by a signal, of `number`, after it was saved.

    Of several processes, all stop together, unless only this one is `alone`.

    Like KeyboardInterrupt it is not an `Exception`, so a loop over runs ends with it.
    """

    def __init__(self, number: int, message: str, alone: bool = False):
        super().__init__(message)
        self.number, self.alone = number, alone


class DownloadError(UserError):
    """The network or a server failed, so that another source may be tried."""


class DamagedError(UserError):
    """A checkpoint is not what was saved."""

    def __init__(self, directory: Path, step: int, error: Exception):
        self.step = step
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        super().__init__(
            f"the checkpoint of step {step} in {directory} is damaged ({reason[:160]})"
        )

    def advised(self, advice: str) -> "DamagedError":
        """Returns the error with advice at the end of its message."""
        self.args = (f"{self}; {advice}",)
        return self


class NotFiniteError(Exception):
    """A loss of a run, or the state that was made of it, is not finite."""


class DivergedError(UserError):
    """The loss of a run is not finite, and no rollback is left.

    Attributes:
      problem: the first line of the message.
    """

    def __init__(self, problem: str, advice: str):
        super().__init__(f"{problem}\n{advice}")
        self.problem = problem


class HookError(Exception):
    """A hook of the user failed; the cause is its own error."""


class ParityError(Exception):
    """An export and its checkpoint differ in their predictions."""
