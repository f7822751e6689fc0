"""Saves and restores the checkpoints of a run.

A checkpoint contains a tree of arrays and a JSON record with a checksum of each array.
It is complete as soon as its directory is on the disk under its final name, so a
process that is killed at any moment, or a power failure, leaves only complete
checkpoints. Only this module, `verify`, `manager` and `commit` use Orbax.
"""

import contextlib
import dataclasses
import functools
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from errno import ENOENT
from pathlib import Path
from typing import Any

import jax
from etils import epy

from flaxmnist.errors import DamagedError, UserError
from flaxmnist.rundir import integrity, verify
from flaxmnist.rundir.manifest import Manifest, read_record, with_checksum
from flaxmnist.rundir.results import Figures
from flaxmnist.runtime import durable, processes

# Orbax takes a second to import, and a run's first steps do not need it.
with epy.lazy_imports():
    import orbax.checkpoint as ocp


class Checkpoints:
    """The checkpoints of a run: the last few, and the best on validation.

    A context manager: when the block ends, everything passed to `save` is on disk.

    Args:
      directory: contains one directory per checkpoint; must exist before `save`.
      keep: number of latest checkpoints to keep, in addition to the best.
      read_only: whether nothing in the directory may change.
      warn: called with a message for each damaged checkpoint, which is then moved to
        ``damaged-checkpoints``.
      check: called before each write; raises if this run may no longer write.

    Raises:
      UserError: `read_only`, and the directory does not exist.
      DamagedError: `read_only`, and a checkpoint cannot be listed.
    """

    def __init__(
        self,
        directory: Path,
        keep: int = 3,
        read_only: bool = False,
        warn: Callable[[str], None] = print,
        check: Callable[[], None] = lambda: None,
    ):
        if read_only and not directory.is_dir():
            raise UserError(f"no checkpoint in {directory}: train first")
        # Orbax accepts only absolute paths.
        self.directory = directory.absolute()
        self._keep, self._read_only = keep, read_only
        self._warn, self._check = warn, check
        self._put_aside(list(self._unlistable()))

    def _folders(self) -> list[Path]:
        steps = integrity.saved_steps(self.directory)
        return [self.directory / str(step) for step in steps]

    def _unlistable(self) -> Iterator[DamagedError]:
        """Yields the checkpoints that Orbax could not list or rank."""
        for folder in self._folders():
            try:
                verify.check_metadata(folder)
            except Exception as error:  # JSON may contain any value.
                verify.raise_unless_damage(error)
                if folder.exists():  # Another run may have deleted it.
                    yield DamagedError(self.directory, int(folder.name), error)

    @functools.cached_property
    def _manager(self) -> "ocp.CheckpointManager":
        from flaxmnist.rundir import manager

        return manager.make_manager(self.directory, self._keep, self._read_only)

    @functools.cached_property
    def _reader(self) -> "ocp.Checkpointer":
        # Each process reads alone: if one fails, the others do not wait for it.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(), active_processes={jax.process_index()}
        )
        return ocp.Checkpointer(
            ocp.CompositeCheckpointHandler(verify.ARRAYS),
            multiprocessing_options=alone,
        )

    @property
    def steps(self) -> list[int]:
        """The saved steps, in ascending order."""
        return sorted(self._manager.all_steps())

    @property
    def best_step(self) -> int:
        """The step that is best on validation, or the latest if none was evaluated.

        Raises:
          UserError: no checkpoint exists.
        """
        best, latest = self._manager.best_step(), self._manager.latest_step()
        if latest is None:
            raise UserError(f"no checkpoint in {self.directory}: train first")
        return int(latest if best is None else best)

    def save(
        self,
        step: int,
        tree: Any,
        manifest: Manifest,
        validation: Figures | None,
    ) -> None:
        """Copies `tree`, starts to write it and returns.

        Waits first for an unfinished earlier write.

        Args:
          step: the name of the checkpoint.
          tree: arrays, on any devices.
          manifest: written beside the arrays, as JSON.
          validation: the figures of this step, if it was evaluated.

        Raises:
          OSError: this write or an earlier one failed.
        """
        self.wait()
        self._check()
        if not self.directory.is_dir():  # Orbax would create only this directory.
            raise FileNotFoundError(ENOENT, os.strerror(ENOENT), str(self.directory))
        manager = self._manager  # The first access takes a second.
        metrics = validation and dataclasses.asdict(validation)
        record = manifest.to_json() | {
            "step": step,
            "validation": metrics,
            "arrays": verify.descriptions(tree),
            "checksums": verify.checksums(tree),
        }
        items = {
            verify.ARRAYS: ocp.args.PyTreeSave(tree),
            verify.RECORD: ocp.args.JsonSave(with_checksum(record)),
        }
        # Last check before Orbax, which would replace a checkpoint of another run.
        self._check()
        with verify.os_errors(self.directory / str(step)):
            manager.save(
                step,
                args=ocp.args.Composite(**items),
                metrics=metrics,
                force=True,
            )

    def restore(
        self, step: int, expect: Callable[[Manifest], Any]
    ) -> tuple[Any, Manifest]:
        """Returns the tree and the manifest of a step.

        Args:
          step: one of `steps`.
          expect: called with the manifest before the arrays are read. Returns a tree of
            `jax.ShapeDtypeStruct` with the shardings to restore into, the saved tree or
            a part of it; raises `UserError` if the checkpoint is of another run.

        Raises:
          UserError: the step does not exist, or its arrays do not match the tree.
          DamagedError: the checkpoint is damaged.
        """
        if step not in self.steps:
            saved = ", ".join(map(str, self.steps)) or "none"
            raise UserError(
                f"checkpoint {step} does not exist in {self.directory}; saved steps: "
                f"{saved}"
            )
        folder = self.directory / str(step)
        with self._damage_reported(step):
            record = read_record(folder / verify.RECORD)
            manifest = Manifest.from_json(record)
            abstract = expect(manifest)
            verify.check_model(folder, record["arrays"], verify.descriptions(abstract))
            verify.check_chunks(folder)
            arrays = ocp.args.PyTreeRestore(
                abstract,
                ocp.checkpoint_utils.construct_restore_args(abstract),
                partial_restore=True,
            )
            tree = self._reader.restore(
                folder, args=ocp.args.Composite(**{verify.ARRAYS: arrays})
            )[verify.ARRAYS]
        with self._damage_reported(step):
            verify.check_checksums(tree, record["checksums"])
        return tree, manifest

    @contextlib.contextmanager
    def _damage_reported(self, step: int) -> Iterator[None]:
        """Raises DamagedError in every process if the block fails in one."""
        found = None
        try:
            with verify.os_errors(self.directory / str(step)):
                yield
        except Exception as error:  # Orbax and TensorStore raise many kinds.
            verify.raise_unless_damage(error)
            if not (self.directory / str(step)).exists():
                raise UserError(
                    f"checkpoint {step} in {self.directory} was deleted by another run "
                    "while it was read; try again"
                ) from None
            found = error
        if processes.all_processes_max(found is not None):
            found = found or RuntimeError("another process cannot read it")
            raise DamagedError(self.directory, step, found) from found

    def restore_newest(
        self, expect: Callable[[Manifest], Any]
    ) -> tuple[int, Any, Manifest] | None:
        """Returns step, tree and manifest of the newest undamaged checkpoint.

        `expect` is that of `restore`.

        Raises:
          UserError: all checkpoints are damaged.
        """
        damaged: list[DamagedError] = []
        for step in reversed(processes.broadcast(self.steps)):
            try:
                tree, manifest = self.restore(step, expect)
            except DamagedError as error:
                damaged.append(error)
                continue
            if damaged:
                self._manager.close()
                del self._manager
                self._put_aside(damaged)
            return step, tree, manifest
        if damaged:
            raise self._all_damaged(damaged[0])
        return None

    def _all_damaged(self, error: DamagedError) -> UserError:
        return UserError(
            f"{error}, and so are all earlier ones; start again with another --workdir"
        )

    def _put_aside(self, damaged: list[DamagedError]) -> None:
        if damaged and len(damaged) == len(self._folders()):
            raise self._all_damaged(max(damaged, key=lambda error: error.step))
        if damaged and self._read_only:
            workdir = shlex.quote(str(self.directory.parent))
            raise damaged[0].advised(
                "to move it aside, resume the run: "
                f"python -m flaxmnist.main --workdir {workdir}"
            )
        if damaged:
            self._check()
        aside = self.directory.parent / "damaged-checkpoints"
        processes.wait_for_all()  # The other processes may still be reading.
        for error in damaged if processes.is_first() else ():
            self._warn(
                f"{error}\nIt was moved to {aside}. The newest undamaged checkpoint is "
                "used instead."
            )
            durable.make_directory(aside)
            name = f"{error.step}-{time.strftime('%Y%m%dT%H%M%S')}"
            durable.replace(self.directory / str(error.step), aside / name)
        processes.wait_for_all()

    def wait(self) -> None:
        """Waits until everything passed to `save` is on disk; raises if that fails."""
        if "_manager" not in vars(self):  # `save` was never called.
            return
        with verify.os_errors(self.directory):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        deleted = self.directory / verify.DELETED
        if not self._read_only and processes.is_first() and deleted.is_dir():
            self._check()
            durable.sync(self.directory)  # Flush the moves before the deletion.
            shutil.rmtree(deleted, ignore_errors=True)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Waits as `wait` does and ends Orbax's threads."""
        # Without that process, Orbax's threads would wait forever.
        if processes.is_peer_failure(error) or "_manager" not in vars(self):
            return
        with verify.os_errors(self.directory), contextlib.closing(self._manager):
            self.wait()
