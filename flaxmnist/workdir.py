"""The folder of a run: whether it can be used, and what an earlier process left."""

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from ml_collections import ConfigDict

from flaxmnist import config as configs
from flaxmnist import distributed
from flaxmnist.checks import UserError


def saved_config(workdir: Path) -> ConfigDict | None:
    """Returns the configuration of the run in `workdir`, if there is one.

    Raises:
      UserError: it cannot be read.
    """
    path = workdir / "config.json"
    if not path.exists():
        return None
    try:
        return configs.from_json(path.read_text())
    except (OSError, ValueError, UserError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): use another --workdir"
        ) from None


def saved_summary(workdir: Path, step: int | None = None) -> dict[str, Any] | None:
    """Returns ``summary.json`` if there is one, of that last step or of any."""
    try:
        summary = json.loads((workdir / "summary.json").read_text())
        whole = {"model", "dataset", "evaluated_step", "train", "validation", "test"}
        same = step in (None, summary["step"])
        return summary if same and whole <= summary.keys() else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def saved_steps(workdir: Path) -> list[int]:
    """Returns the steps of the folder's checkpoints, in order."""
    names = (path.name for path in workdir.glob("checkpoints/*"))
    return sorted(int(name) for name in names if name.isdigit())


def check(workdir: Path, config: ConfigDict) -> None:
    """Holds the folder against a configuration; writes nothing.

    Raises:
      UserError: it is a file, or holds a run that differs in what matters.
    """
    try:
        if workdir.exists() and not workdir.is_dir():
            raise UserError(f"--workdir {workdir} is a file: expected a folder")
    except OSError as error:
        raise UserError(f"--workdir {workdir}: {error.strerror}") from None
    # Without a checkpoint there is nothing that another configuration could spoil.
    if saved_steps(workdir) and (before := saved_config(workdir)):
        check_same(before, config)


def check_same(before: ConfigDict, config: ConfigDict) -> None:
    """Raises UserError if a run's configuration differs in what matters."""
    if changed := configs.differences(before, config):
        raise UserError(
            "--workdir holds a run of another configuration: use another, or its "
            f"options\n{'; '.join(changed)}"
        )


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
    """Makes the folder, and keeps other runs out of it while the block runs.

    The lock is the kernel's: it ends with its process, however that ends. Where there
    is none, as on some network file systems, nobody is kept out. Of several processes
    of one run, the first alone locks.

    Raises:
      UserError: the folder cannot be made or written, when the block begins or later,
        or another run is in it.
    """
    try:
        for folder in (workdir, workdir / "checkpoints", workdir / "tensorboard"):
            folder.mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("a+b", buffering=0)
    except OSError as error:
        raise UserError(
            f"--workdir {workdir} cannot be written ({error.strerror}): use another"
        ) from None
    with lock:
        try:
            if distributed.is_first():
                _claim(workdir, lock)
            yield
        except BrokenPipeError:  # Of the standard output.
            raise
        except OSError as error:
            reason = f"{error.strerror or error}"
            where = f": {error.filename}" if error.filename else ""
            kept = "there is no checkpoint in it"
            if steps := saved_steps(workdir):
                kept = f"step {steps[-1]} is saved, and the same command resumes there"
            raise UserError(
                f"{workdir} cannot be written any more ({reason}{where}); {kept}"
            ) from error


def _claim(workdir: Path, lock: BinaryIO) -> None:
    """Locks the folder and says who did, or raises UserError and says who has."""
    try:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().decode(errors="replace") or "another process"
        raise UserError(
            f"--workdir {workdir} is in use by {holder}: wait for it, or use another"
        ) from None
    except (ImportError, OSError):  # Not on Windows, nor on every file system.
        pass
    lock.truncate(0)
    since = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    holder = f"process {os.getpid()} on {socket.gethostname()} since {since}"
    lock.write(holder.encode())
    # What a killed process was writing.
    for pattern in ("*.partial-*", "plots/*.partial-*"):
        for path in workdir.glob(pattern):
            path.unlink(missing_ok=True)
