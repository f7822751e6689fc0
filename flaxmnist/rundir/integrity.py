"""Names and kinds of the files in a run directory."""

import os
import re
import stat
from collections.abc import Callable
from errno import EACCES
from pathlib import Path

from flaxmnist.errors import UserError
from flaxmnist.options import MAX_STEPS
from flaxmnist.runtime.files import MAX_BYTES

# All that a run, and the commands that read one, write into its directory.
FILES = (
    ".lock",
    "config.json",
    "extensions.json",
    "population.json",
    "metrics.jsonl",
    "summary.json",
    "report.html",
    "comparison.html",
    "label_errors.csv",
    "predictions-train.jsonl",
    "predictions-validation.jsonl",
    "predictions-test.jsonl",
)
FOLDERS = ("checkpoints", "damaged-checkpoints", "export", "plots", "tensorboard")
# Bytes of metrics.jsonl; files of a checkpoint.
MAX_METRICS, MAX_FILES = 1 << 30, 100_000
_PARTIAL = re.compile(
    rf"({'|'.join(map(re.escape, FILES))}|[a-z]+\.png)\.partial-([0-9]+)", re.ASCII
)


def check_links(workdir: Path) -> None:
    """Raises UserError if a link would redirect a write out of a run directory.

    The directory itself may be a link.
    """
    try:
        for name in FILES:
            check_file(workdir / name)
        for name in FOLDERS:
            if _check(workdir / name, stat.S_ISDIR, "a directory"):
                for path in (workdir / name).iterdir():
                    if path.is_symlink():
                        raise _is_link(path)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror})") from None


def check_file(path: Path) -> None:
    """Raises UserError if a path is a link, or not of a regular file.

    Raises:
      OSError: the directory cannot be read.
    """
    _check(path, stat.S_ISREG, "a regular file")


def _check(path: Path, is_kind: Callable[[int], bool], kind: str) -> bool:
    """Returns whether a path exists; raises UserError if it is of another kind."""
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    # All files but this one are replaced, not changed.
    hard_link = path.name == ".lock" and status.st_nlink > 1
    if stat.S_ISLNK(status.st_mode) or (hard_link and is_kind(status.st_mode)):
        raise _is_link(path)
    if not is_kind(status.st_mode):
        raise UserError(
            f"{path} is not {kind}. Remove it, or use another run directory"
        )
    return True


def _is_link(path: Path) -> UserError:
    return UserError(
        f"{path} is a link, and a run writes nothing outside its directory. Remove the "
        "link, or make the run directory itself a link"
    )


def remove_partial(workdir: Path) -> None:
    """Deletes the files that a killed process was writing."""
    for folder in (workdir, workdir / "plots"):
        for path in folder.glob("*.partial-*"):
            ours = _PARTIAL.fullmatch(path.name)
            if ours and not path.is_dir() and not _is_running(int(ours[2])):
                path.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    """Returns whether another process of this host has this id."""
    # In a container, a killed process often had the id of this one. On Windows,
    # signal 0 would be a Ctrl-C.
    if process == os.getpid() or os.name == "nt":
        return False
    try:
        os.kill(process, 0)
    except PermissionError:  # It is of another user.
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def saved_steps(checkpoints: Path) -> list[int]:
    """Returns the steps that name an entry of a folder of checkpoints, in order.

    Raises:
      UserError: the folder cannot be read.
    """
    try:
        names = os.listdir(checkpoints)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"{checkpoints} cannot be read ({error.strerror})") from None
    # Orbax, too, ignores digits of other scripts and leading zeros.
    return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))


def check_checkpoint(folder: Path) -> None:
    """Raises ValueError unless a checkpoint consists of regular files of sane sizes.

    TensorStore waits for a pipe, and aborts where a file does not fit into memory.

    Raises:
      ValueError: see above.
      OSError: this user may not read all of it.
    """
    if folder.is_symlink() or not 0 <= int(folder.name) < MAX_STEPS:
        raise ValueError("it is a link, or its name is not a step")

    def refuse(error: OSError) -> None:
        raise error

    count = 0
    for place, folders, names in os.walk(folder, onerror=refuse):
        count += len(names)
        for name in (*folders, *names):
            path = Path(place, name)
            status = path.lstat()
            is_file = stat.S_ISREG(status.st_mode)
            # Files of arrays are read in parts.
            in_parts = path.parent.name == "d"
            if not is_file and not stat.S_ISDIR(status.st_mode):
                raise ValueError(f"{path.name} is not a regular file")
            # Orbax would name the checkpoint, not the file. A run that goes on may have
            # deleted it.
            if not os.access(path, os.R_OK) and path.exists():
                raise PermissionError(EACCES, os.strerror(EACCES), str(path))
            if is_file and not in_parts and status.st_size > MAX_BYTES:
                raise ValueError(f"{path.name} has {status.st_size:,} bytes")
        if count > MAX_FILES:
            raise ValueError(f"it has more than {MAX_FILES:,} files")
