"""Checkpoints: with `commit`, the only module that knows Orbax.

A checkpoint holds a tree of arrays and a JSON record, which carries a checksum of each
array. It counts as saved once its folder is on the disk under its final name, so that a
process killed at any moment, or a power failure, leaves whole checkpoints only.
"""

import contextlib
import dataclasses
import functools
import logging
import operator
import os
import re
import shlex
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from errno import EACCES, EMFILE, ENFILE, ENOENT, ENOMEM, EPERM
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epy

from flaxmnist import options
from flaxmnist.core.sharding import named_leaves
from flaxmnist.errors import DamagedError, UserError, kind_of
from flaxmnist.options import conform
from flaxmnist.rundir import integrity
from flaxmnist.rundir.manifest import (
    Figures,
    Manifest,
    canonical_json,
    read_record,
    with_checksum,
)
from flaxmnist.runtime import durable, files, logs, processes
from flaxmnist.runtime.failures import explain

# A run's first steps need none of it.
with epy.lazy_imports():
    import orbax.checkpoint as ocp
    from orbax.checkpoint import checkpoint_managers

_ARRAYS, _RECORD = "arrays", "record"
# Where Orbax moves, whole, what is kept no longer: deleted file by file in its place,
# it would be a damaged checkpoint meanwhile. By this name Orbax takes it for one that
# was not finished, and removes it at the next start.
_DELETED = "deleted.orbax-checkpoint-tmp"
# The schema of Orbax's file ``_CHECKPOINT_METADATA``. Orbax fails on any other content.
_OBJECT = options.optional(options.OptionType("an object", lambda value: {**value}))
_TIME = options.optional(options.whole(0, below=2**63))
_METADATA: options.Schema = {
    "item_handlers": options.optional(
        options.OptionType(
            "an object or a text",
            lambda value: value if isinstance(value, str) else {**value},
        )
    ),
    "metrics": _OBJECT,
    "performance_metrics": _OBJECT,
    "init_timestamp_nsecs": _TIME,
    "commit_timestamp_nsecs": _TIME,
    "custom_metadata": _OBJECT,
}


def _rank(metrics: dict[str, float]) -> float:
    """Ranks the validation figures that Orbax keeps beside a checkpoint."""
    return Figures.from_json(metrics).rank


def _leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yields each array of a tree, or its shape and dtype, under its name."""
    for name, leaf in named_leaves(tree):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = (
                jax.random.key_data(leaf)
                if isinstance(leaf, jax.Array)
                else jax.eval_shape(jax.random.key_data, leaf)
            )
        yield name, leaf


def _kinds(tree: Any) -> dict[str, str]:
    """Returns ``{"state/params/Dense_0/bias": "float32 [128]", …}``."""
    return {name: kind_of(leaf) for name, leaf in _leaves(tree)}


def _checksums(tree: Any) -> dict[str, int]:
    """Returns a CRC-32 of each array by its name, whatever its sharding."""
    return {
        name: zlib.crc32(
            np.ascontiguousarray(processes.gather(leaf)).reshape(-1).view(np.uint8).data
        )
        for name, leaf in _leaves(tree)
    }


def _check_step(record: dict[str, Any], step: int) -> None:
    """Raises ValueError if a record belongs to another step than its folder."""
    # Older records contain no step, only a checksum of the step in the state.
    checksum = record["checksums"].get("state/step")
    other = checksum not in (None, zlib.crc32(np.int32(step).tobytes()))
    if record.get("step", step) != step or other:
        raise ValueError(f"its content is of step {record.get('step', 'another')}")


@contextlib.contextmanager
def _os_errors(path: Path) -> Iterator[None]:
    """Has TensorStore, too, tell of a full disk by an OSError."""
    try:
        yield
    except ValueError as error:
        if not (found := re.search(r"(?:os_error_code='|OS error )(\d+)", str(error))):
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from error


def _raise_unless_damage(error: Exception) -> None:
    """Raises an error of reading a checkpoint, unless its content is the cause."""
    limits = (EACCES, EPERM, EMFILE, ENFILE, ENOMEM)
    if isinstance(error, OSError) and error.errno in limits:
        raise UserError(explain(error)) from error
    if isinstance(error, UserError | MemoryError):
        raise error


class Checkpoints:
    """The checkpoints of a run: the last few, and the best on validation.

    A context manager: on leaving, all that was given to `save` is on disk.

    Args:
      directory: their folder; it must exist before `save`.
      keep: how many of the latest are kept, beside the best.
      read_only: nothing in the folder is changed.
      warn: is told of damaged checkpoints, which are moved aside, to
        ``damaged-checkpoints``.
      check: called before each write; raises if nothing may be written any more.

    Raises:
      UserError: `read_only`, and there is no such folder.
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
        # Orbax takes absolute paths alone.
        self.directory = directory.absolute()
        self._keep, self._read_only = keep, read_only
        self._warn, self._check = warn, check
        self._put_aside(list(self._unlistable()))

    def _folders(self) -> list[Path]:
        steps = integrity.saved_steps(self.directory)
        return [self.directory / str(step) for step in steps]

    def _unlistable(self) -> Iterator[DamagedError]:
        """Yields what Orbax could not open the folder with, or not tell the best."""
        for folder in self._folders():
            try:
                integrity.check_checkpoint(folder)
                conform(files.read_json(folder / "_CHECKPOINT_METADATA"), _METADATA)
                validation = None
                if (metrics := folder / "metrics" / "metrics").exists():
                    validation = files.read_json(metrics)
                    Figures.from_json(validation)
                record = read_record(folder / _RECORD)
                _check_step(record, int(folder.name))
                said = record.get("validation", validation)
                if canonical_json(said) != canonical_json(validation):
                    raise ValueError("its figures on validation differ")
            except Exception as error:  # Whatever JSON may hold.
                _raise_unless_damage(error)
                if folder.exists():  # A run that goes on may have deleted it.
                    yield DamagedError(self.directory, int(folder.name), error)

    @functools.cached_property
    def _manager(self) -> "ocp.CheckpointManager":
        from flaxmnist.rundir.commit import SyncedPath

        policies = checkpoint_managers
        options = ocp.CheckpointManagerOptions(
            best_fn=_rank,
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(self._keep),
                    policies.BestN(
                        get_metric_fn=_rank, n=1, keep_checkpoints_without_metrics=False
                    ),
                ]
            ),
            todelete_subdir=None if self._read_only else _DELETED,
            temporary_path_class=SyncedPath,
            # In a thread, a folder that cannot be made would be waited for.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
            create=not self._read_only,
            # Orbax would delete them in a thread, which may outlive a short run.
            cleanup_tmp_directories=False,
            read_only=self._read_only,
            save_interval_steps=0 if self._read_only else 1,
        )
        if not self._read_only and processes.is_first():
            for left in self.directory.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(left)  # A killed process left it.
        while True:
            try:
                with logs.at_levels(absl=logging.ERROR):  # It warns of `read_only`.
                    return ocp.CheckpointManager(
                        self.directory, options=options, item_names=(_ARRAYS, _RECORD)
                    )
            except FileNotFoundError:  # A run that goes on deleted one meanwhile.
                if not self._read_only:
                    raise

    @functools.cached_property
    def _reader(self) -> "ocp.Checkpointer":
        # Of this process alone: where one fails to read, none waits for it.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(), active_processes={jax.process_index()}
        )
        return ocp.Checkpointer(
            ocp.CompositeCheckpointHandler(_ARRAYS),
            multiprocessing_options=alone,
        )

    @property
    def steps(self) -> list[int]:
        """Steps that are saved, in order."""
        return sorted(self._manager.all_steps())

    @property
    def best_step(self) -> int:
        """Step of the best on validation; the latest, if none was evaluated.

        Raises:
          UserError: there is no checkpoint.
        """
        best, latest = self._manager.best_step(), self._manager.latest_step()
        if latest is None:
            raise UserError(f"no checkpoint in {self.directory}: train first")
        return latest if best is None else best

    def save(
        self,
        step: int,
        tree: Any,
        manifest: Manifest,
        validation: Figures | None,
    ) -> None:
        """Copies `tree` and starts writing; training may go on at once.

        An earlier write that is not finished is waited for.

        Args:
          step: names the checkpoint.
          tree: arrays, on any devices.
          manifest: written beside them, as JSON.
          validation: the figures of this step, if it was evaluated.

        Raises:
          OSError: this write or an earlier one failed.
        """
        self.wait()
        self._check()
        if not self.directory.is_dir():  # Orbax would make it, and nothing else there.
            raise FileNotFoundError(ENOENT, os.strerror(ENOENT), str(self.directory))
        manager = self._manager  # The first time, this takes a second.
        metrics = validation and dataclasses.asdict(validation)
        record = manifest.to_json() | {
            "step": step,
            "validation": metrics,
            "arrays": _kinds(tree),
            "checksums": _checksums(tree),
        }
        items = {
            _ARRAYS: ocp.args.PyTreeSave(tree),
            _RECORD: ocp.args.JsonSave(with_checksum(record)),
        }
        # Right before Orbax, which would replace a checkpoint of another run.
        self._check()
        with _os_errors(self.directory / str(step)):
            manager.save(
                step,
                args=ocp.args.Composite(**items),
                metrics=metrics,
                force=True,
            )

    def restore(
        self, step: int, abstract: Any, check: Callable[[Manifest], None]
    ) -> tuple[Any, Manifest]:
        """Returns the tree and the manifest of a step.

        Args:
          step: one of `steps`.
          abstract: `jax.ShapeDtypeStruct`s, with the shardings wanted; a part of the
            tree that was saved is enough.
          check: called with the manifest before the arrays are read; raises
            `UserError` if the checkpoint is of another run.

        Raises:
          UserError: there is no such step, its arrays are not those of `abstract`, or
            (`DamagedError`) it is damaged.
        """
        if step not in self.steps:
            there = ", ".join(map(str, self.steps)) or "none"
            raise UserError(
                f"no checkpoint of step {step} in {self.directory}: there are {there}"
            )
        with self._found_damaged(step):
            record = read_record(self.directory / str(step) / _RECORD)
            expected = record.pop("checksums")
            manifest = Manifest.from_json(record)
            check(manifest)
            self._check_kinds(step, record.pop("arrays"), _kinds(abstract))
            self._check_chunks(step)
            arrays = ocp.args.PyTreeRestore(
                abstract,
                ocp.checkpoint_utils.construct_restore_args(abstract),
                partial_restore=True,
            )
            tree = self._reader.restore(
                self.directory / str(step),
                args=ocp.args.Composite(**{_ARRAYS: arrays}),
            )[_ARRAYS]
        with self._found_damaged(step):
            for path, found in _checksums(tree).items():
                if expected.get(path, found) != found:
                    raise ValueError(f"the checksum of {path} differs")
        return tree, manifest

    @contextlib.contextmanager
    def _found_damaged(self, step: int) -> Iterator[None]:
        """Raises DamagedError in every process if the block fails in one."""
        found = None
        try:
            with _os_errors(self.directory / str(step)):
                yield
        except Exception as error:  # Orbax and TensorStore raise many kinds.
            _raise_unless_damage(error)
            if not (self.directory / str(step)).exists():
                raise UserError(
                    f"the checkpoint of step {step} in {self.directory} was deleted "
                    "meanwhile, by a run that goes on there: try again"
                ) from None
            found = error
        if processes.all_processes_max(found is not None):
            found = found or RuntimeError("another process cannot read it")
            raise DamagedError(self.directory, step, found) from found

    def _check_kinds(
        self, step: int, there: dict[str, str], here: dict[str, str]
    ) -> None:
        parts = {name.split("/")[1] for name in here}
        there = {
            name: kind for name, kind in there.items() if name.split("/")[1] in parts
        }
        for name in sorted(there.keys() | here.keys()):
            if there.get(name) != here.get(name):
                raise UserError(
                    f"the checkpoint of step {step} in {self.directory} is of another "
                    f"model: {name.partition('/')[2]} is {there.get(name, 'not')} "
                    f"there, {here.get(name, 'not')} here"
                )

    def _check_chunks(self, step: int) -> None:
        # A chunk is allocated whole, and what is compressed says nothing of its size.
        handler = ocp.PyTreeCheckpointHandler()
        stored = handler.metadata(self.directory / str(step) / _ARRAYS)
        for array in jax.tree.leaves(stored):
            if any(map(operator.gt, array.storage.chunk_shape, array.shape)):
                raise ValueError(f"the chunks of {array.name} are larger than it is")

    def restore_newest(
        self, abstract: Any, check: Callable[[Manifest], None]
    ) -> tuple[int, Any, Manifest] | None:
        """Returns step, tree and manifest of the newest checkpoint that is whole.

        The arguments are those of `restore`.

        Raises:
          UserError: there are checkpoints, but all are damaged.
        """
        damaged: list[DamagedError] = []
        for step in reversed(processes.broadcast(self.steps)):
            try:
                tree, manifest = self.restore(step, abstract, check)
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
            f"{error}, and so is every one before it: start anew with another --workdir"
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
        processes.wait_for_all()  # Until then, others look at what is moved.
        for error in damaged if processes.is_first() else ():
            self._warn(
                f"{error}\nIt is now in {aside}; the newest that is whole is used."
            )
            durable.make_directory(aside)
            name = f"{error.step}-{time.strftime('%Y%m%dT%H%M%S')}"
            durable.replace(self.directory / str(error.step), aside / name)
        processes.wait_for_all()

    def wait(self) -> None:
        """Returns when all that was given to `save` is on disk; raises if it is not."""
        if "_manager" not in vars(self):  # Nothing was given to `save`.
            return
        with _os_errors(self.directory):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        deleted = self.directory / _DELETED
        if not self._read_only and processes.is_first() and deleted.is_dir():
            self._check()
            durable.sync(self.directory)  # Flush the moves before the deletion.
            shutil.rmtree(deleted, ignore_errors=True)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Waits as `wait` does and ends Orbax's threads."""
        # They wait for a process that is no more.
        if processes.is_peer_failure(error) or "_manager" not in vars(self):
            return
        with _os_errors(self.directory), contextlib.closing(self._manager):
            self.wait()
