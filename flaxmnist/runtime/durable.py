"""Writing files and directories so that they survive a power failure."""

import contextlib
import errno
import itertools
import os
from pathlib import Path


def sync(path: Path) -> None:
    """Flushes a file, or the names in a directory, to the disk."""
    if os.name == "nt":  # Windows cannot flush a directory.
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # A directory may be writable and not readable.
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot flush a directory either.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flushes a directory and its content."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(place, name))
        sync(Path(place))


def replace(source: Path, target: Path) -> None:
    """Renames a file or directory that is flushed already, and flushes its name."""
    os.replace(source, target)
    for folder in {source.parent, target.parent}:
        sync(folder)


def write_file(path: Path, *content: str | bytes | memoryview) -> None:
    """Writes a whole file or nothing: under another name first, then renamed."""
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        partial.unlink(missing_ok=True)
        with partial.open("xb") as file:  # Not through a link.
            for part in content:
                file.write(part.encode() if isinstance(part, str) else part)
            file.flush()
            os.fsync(file.fileno())
        replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def make_directory(path: Path) -> list[Path]:
    """Creates a directory and its missing parents, and flushes their names.

    Returns:
      the directories that were created, outermost first.

    Raises:
      OSError: one of them cannot be created, or is a file; none is left behind.
    """
    if path.is_dir():
        return []
    parents = itertools.takewhile(lambda folder: not folder.exists(), path.parents)
    made: list[Path] = []
    try:
        for folder in reversed([path, *parents]):
            try:
                folder.mkdir()
            except FileExistsError:
                if not folder.is_dir():
                    raise
                continue  # Another process was faster.
            made.append(folder)
            sync(folder.parent)
    except OSError:
        for folder in reversed(made):
            with contextlib.suppress(OSError):  # Another process uses it.
                folder.rmdir()
        raise
    return made
