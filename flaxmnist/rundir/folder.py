"""The directory of a run: its lock, its configuration and its summary."""

import contextlib
import math
import os
import socket
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from errno import ENOENT
from pathlib import Path
from typing import BinaryIO

import jax

from flaxmnist import config as configs
from flaxmnist.errors import UserError
from flaxmnist.rundir import integrity, population, trust
from flaxmnist.rundir.configuration import check as check
from flaxmnist.rundir.configuration import check_same as check_same
from flaxmnist.rundir.configuration import saved_config as saved_config
from flaxmnist.rundir.configuration import saved_values as saved_values
from flaxmnist.rundir.results import Summary
from flaxmnist.rundir.trust import permit as permit
from flaxmnist.rundir.trust import permit_all as permit_all
from flaxmnist.runtime import durable, files, processes
from flaxmnist.runtime.failures import is_of_files


def saved_summary(workdir: Path, step: int | None = None) -> Summary | None:
    """Returns the saved summary if it is valid and ends at `step`, if given."""
    try:
        values = files.read_json(workdir / "summary.json")
        trust.check(values.get("config"), workdir)
        summary = Summary.from_json(values)
    except (AttributeError, OSError, ValueError, UserError):
        return None
    return summary if step in (None, summary.step) else None


def saved_steps(workdir: Path) -> list[int]:
    """Returns the steps of the checkpoints, in order."""
    return integrity.saved_steps(workdir / "checkpoints")


def is_finished(workdir: Path, config: configs.Config | None = None) -> bool:
    """Returns whether a run has a result, and was not trained further since then.

    A damaged result counts: reading it for use reports the damage.

    Args:
      workdir: the run directory.
      config: a later configuration of the run, whose length counts, too.
    """
    if not (workdir / "summary.json").exists():
        return False
    if (summary := saved_summary(workdir)) is None:
        return True
    stopped_early = summary.step < summary.total_steps
    is_longer = (
        config is not None
        and not stopped_early
        and any(
            (getattr(config, name) or 0) > (summary.config[name] or math.inf)
            for name in ("num_epochs", "num_steps")
        )
    )
    # Its user may have deleted the checkpoints.
    return not is_longer and saved_steps(workdir)[-1:] <= [summary.step]


def unfinished(workdir: Path, members: Iterable[population.Member]) -> list[str]:
    """Returns the names of the members without a result of the present length.

    Raises:
      UserError: the configuration of the population cannot be read.
    """
    config = saved_config(workdir, alone=True)
    return [
        one.name
        for one in members
        if not is_finished(
            workdir / one.name, config and population.configuration(config, one)
        )
    ]


class Lock:
    """The lock of a run directory, held until the process ends or the block is left.

    The kernel releases the lock when the process ends in any way. Network file systems
    without locks do not keep other runs out. Of several processes of one run, only the
    first locks.

    Attributes:
      workdir: the directory.
    """

    def __init__(self, workdir: Path):
        integrity.check_links(workdir)
        self.workdir, self._path = workdir, workdir / ".lock"
        self._made: list[Path] = []
        self._is_new = self._kept = False
        holder = ""
        if processes.is_first():
            self._acquire()
            holder = self._path.read_text(encoding="utf-8")
        holder = processes.broadcast(holder)
        visible = processes.is_first() or self._open(holder)
        if process := processes.all_processes_max(
            0 if visible else jax.process_index()
        ):
            if processes.is_first():
                self.release()
            raise UserError(
                f"--workdir {workdir} is not the same directory for all processes: "
                f"process {process} cannot read the .lock of process 0 in it; expected "
                "a directory that all of them can read and write"
            )

    def _open(self, holder: str) -> bool:
        """Opens the lock file of process 0; returns False if it is not visible."""
        until = time.monotonic() + processes.SHARED_SECONDS
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                self._file = self._path.open("rb", buffering=0)
                if self._file.read().decode() == holder:
                    return True
                self._file.close()
            time.sleep(0.2)
        return False

    def _acquire(self) -> None:
        for _ in range(100):
            self._made += durable.make_directory(self.workdir)
            is_new = not self._path.exists()
            try:
                self._file = self._path.open("a+b", buffering=0)
            except FileNotFoundError:  # Its last holder removed the directory.
                continue
            try:
                _claim(self.workdir, self._file)
            except UserError:
                self._file.close()
                raise
            except OSError:  # It is locked, but the disk is full.
                self._is_new = is_new
                self.release()
                raise
            self._is_new = self._is_new or is_new
            if self._is_ours():
                return
            self._file.close()  # Its last holder removed the file.
        raise UserError(f"--workdir {self.workdir} cannot be locked: try again")

    def _is_ours(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            there = self._path.stat()
            return os.path.samestat(os.fstat(self._file.fileno()), there)
        return False

    def check(self) -> None:
        """Raises UserError if the path no longer leads to the locked directory.

        Call it before each write: after a pause, the directory may have been moved
        and another run may have begun under its name.
        """
        if not self.workdir.is_dir():
            raise FileNotFoundError(ENOENT, os.strerror(ENOENT), str(self.workdir))
        if not self._is_ours():
            raise UserError(
                f"{self.workdir} is no longer the directory that this run locked: it "
                "was moved or replaced, or its .lock was deleted. This run stops and "
                "writes nothing more; to resume it, give its directory as --workdir"
            )

    def write(self, name: str, content: str) -> None:
        """Writes a file of the directory; of several processes, the first alone does.

        Raises:
          UserError: see `check`.
        """
        self.check()
        if processes.is_first():
            durable.write_file(self.workdir / name, content)

    def write_config(self, config: configs.Config, *members: configs.Config) -> None:
        """Writes the configuration, and where the callables of the user are.

        Args:
          config: of the run, or that the members of a population share.
          *members: configurations of the members.

        Raises:
          UserError: see `check`.
        """
        self.sign(config, *members)
        self.write("config.json", configs.to_json(config))

    def sign(self, *named: configs.Config) -> None:
        """Writes where the callables of the user are that configurations name.

        Raises:
          UserError: see `check`.
        """
        if processes.is_first():
            record = trust.record_code(self.workdir, *named)
            if record is None:
                self.remove(trust.EXTENSIONS)
            else:
                self.write(trust.EXTENSIONS, record)

    def remove(self, name: str) -> None:
        """Removes a file of the directory, if it exists, as `write` writes one."""
        self.check()
        if processes.is_first():
            (self.workdir / name).unlink(missing_ok=True)

    def prepare(self, folders: Iterable[str] = ("checkpoints", "tensorboard")) -> None:
        """Creates what a run needs; until then, `release` leaves no trace."""
        self._kept = True
        for folder in folders:
            durable.make_directory(self.workdir / folder)
        if processes.is_first():
            integrity.remove_partial(self.workdir)

    def release(self) -> None:
        """Removes what was created, unless `prepare` was called, and unlocks."""
        if not self._kept and processes.is_first():
            with contextlib.suppress(OSError):  # A directory may not be empty.
                if self._is_new:
                    self._path.unlink()
                for folder in reversed(self._made):
                    folder.rmdir()
        self._file.close()


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[Lock]:
    """Keeps other runs out of a directory while the block runs; creates it if missing.

    Raises:
      UserError: the directory cannot be created or written, when the block begins or
        later, or another run is in it.
      OSError: the block cannot read or write a file outside the directory, or reach
        the network.
    """
    try:
        lock = Lock(workdir)
    except FileExistsError as error:
        path, problem = Path(error.filename), "is a file; expected a directory"
        if path.is_symlink():
            problem = (
                f"cannot be created: {path} is a link whose target "
                f"{os.readlink(path)} does not exist. Create that directory, or remove "
                "the link"
            )
        raise UserError(f"--workdir {workdir} {problem}") from None
    except OSError as error:
        raise UserError(
            f"--workdir {workdir} cannot be written ({error.strerror}); use another"
        ) from None
    try:
        yield lock
    except BrokenPipeError:  # Of the standard output.
        raise
    except OSError as error:
        if _is_elsewhere(error, workdir):
            raise
        reason = f"{error.strerror or error}"
        where = f": {error.filename}" if error.filename else ""
        kept = "it contains no checkpoint"
        try:
            if steps := saved_steps(workdir):
                kept = f"step {steps[-1]} is saved, and the same command resumes there"
        except UserError:
            kept = "nothing in it was deleted"
        raise UserError(
            f"{workdir} cannot be written any more ({reason}{where}); {kept}"
        ) from error
    finally:
        lock.release()


def _is_elsewhere(error: OSError, workdir: Path) -> bool:
    """Returns whether an error is not one of a file in `workdir`."""
    if not is_of_files(error):
        return True
    if not isinstance(error.filename, str | bytes):
        return False
    path = Path(os.path.abspath(os.fsdecode(error.filename)))
    return not path.is_relative_to(os.path.abspath(workdir))


def _claim(workdir: Path, lock: BinaryIO) -> None:
    """Locks the file and writes this process into it.

    Raises:
      UserError: another process has locked it.
    """
    try:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read(200).decode(errors="replace") or "another process"
        raise UserError(
            f"--workdir {workdir} is in use by {holder}; wait for it, or use another "
            "directory"
        ) from None
    except (ImportError, OSError):  # Not on Windows, nor on every file system.
        pass
    lock.truncate(0)
    since = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    holder = f"process {os.getpid()} on {socket.gethostname()} since {since}"
    lock.write(holder.encode())
    os.fsync(lock.fileno())  # Other hosts see it from now on.
