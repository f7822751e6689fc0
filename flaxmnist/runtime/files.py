"""Reading of untrusted files with limits, and directories for incomplete files."""

import contextlib
import io
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flaxmnist.errors import DownloadError, UserError, shown
from flaxmnist.paths import path_of

# Bytes of a JSON file.
MAX_BYTES = 1 << 24
# Whether this process caches compiled programs and unpacked data; commands set it.
cache_enabled = False
# Only flaxmnist makes directories of such a name, also in directories of the user.
_PARTIAL = ".flaxmnist-partial-"


def delete_oldest(folder: Path, pattern: str, max_files: int) -> None:
    """Deletes all but the `max_files` files of a cache that were used last.

    Incomplete files, of processes that were killed, are among them.

    Raises:
      OSError: one of them cannot be deleted.
    """
    found = sorted(folder.glob(pattern), key=os.path.getatime)
    for path in found[: max(len(found) - max_files, 0)]:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def open_regular(
    path: str | os.PathLike[str], max_bytes: int
) -> Iterator[io.BufferedReader]:
    """Opens a regular file of at most `max_bytes` for binary reading.

    A FIFO could block the reader forever, and a device has no end.

    Raises:
      UserError: the path is not a regular file, or the file is too large.
      OSError: the file cannot be opened.
    """

    def without_waiting(name: str, flags: int) -> int:
        # Otherwise opening a FIFO waits for a writer.
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    with open(os.fspath(path), "rb", opener=without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{shown(os.fspath(path))} is not a regular file")
        if status.st_size > max_bytes:
            raise UserError(
                f"{shown(os.fspath(path))} has {status.st_size:,} bytes; expected at "
                f"most {max_bytes:,}"
            )
        yield file


def read_bytes(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """Returns the content of a regular file of at most `max_bytes`.

    Raises:
      UserError, OSError: as :func:`open_regular`.
    """
    with open_regular(path, max_bytes) as file:
        return file.read(max_bytes)


@contextlib.contextmanager
def partial_folder(
    parent: Path, recover: Callable[[Path], None] = lambda left: None
) -> Iterator[Path]:
    """Creates a directory in `parent` for incomplete files, and deletes it afterwards.

    Deletes the directories of killed processes first, whose locks have ended. Passes
    each to `recover` before.

    Raises:
      OSError: the directory cannot be created.
    """
    parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with locked(parent):
            for left in parent.glob(f"{_PARTIAL}*"):
                with locked(left, wait=False) as abandoned:
                    if abandoned:
                        recover(left)
                        shutil.rmtree(left, ignore_errors=True)
            folder = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=parent))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            stack.enter_context(locked(folder))
        yield folder


@contextlib.contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[bool]:
    """Locks a directory; yields False if another process or the system prevents it."""
    with contextlib.ExitStack() as stack:
        success = False
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            handle = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
            stack.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            success = True
        yield success


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file of at most `MAX_BYTES`.

    Raises:
      OSError: the file cannot be opened.
      UserError: it is not a regular file, or too large.
      ValueError: it is not JSON, or nested too deeply.
    """
    return parse_json(read_bytes(path, MAX_BYTES))


def parse_json(text: str | bytes) -> Any:
    """Returns the value of a JSON text.

    Raises:
      ValueError: it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def cache_dir() -> Path:
    """Returns the directory for downloads: FLAXMNIST_CACHE_DIR, or the user's cache.

    Raises:
      DownloadError: the user has no home directory, or FLAXMNIST_CACHE_DIR is not a
        path.
    """
    try:
        if path := os.environ.get("FLAXMNIST_CACHE_DIR"):
            return path_of(path, "FLAXMNIST_CACHE_DIR")
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return Path(base).expanduser() / "flaxmnist"
    except UserError as error:
        raise DownloadError(str(error)) from None
    except RuntimeError:
        raise DownloadError(
            "this user has no home directory; set FLAXMNIST_CACHE_DIR to a directory "
            "that can be written"
        ) from None
