"""Checks of a checkpoint: is it undamaged, and does it belong to this model?"""

import contextlib
import operator
import os
import re
import zlib
from collections.abc import Iterator
from errno import (
    EACCES,
    EHOSTDOWN,
    EHOSTUNREACH,
    EMFILE,
    ENFILE,
    ENOMEM,
    ENOTCONN,
    EPERM,
    ESTALE,
    ETIMEDOUT,
)
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epy

from flaxmnist import options
from flaxmnist.core.sharding import is_key, named_leaves
from flaxmnist.errors import UserError, dtype_and_shape
from flaxmnist.rundir import integrity
from flaxmnist.rundir.manifest import canonical_json, read_record
from flaxmnist.rundir.results import Figures
from flaxmnist.rundir.schemas import OBJECT, Schema, conform
from flaxmnist.runtime import files, processes
from flaxmnist.runtime.failures import explain

# Orbax takes a second to import, and a run's first steps do not need it.
with epy.lazy_imports():
    import orbax.checkpoint as ocp

# The parts of a checkpoint: subdirectories of its directory.
ARRAYS, RECORD = "arrays", "record"
# Orbax first moves an expired checkpoint here. Deleting it in place, file by file,
# would leave a damaged checkpoint if the process died halfway. Because of this suffix,
# Orbax treats the directory as unfinished and removes it at the next start.
DELETED = "deleted.orbax-checkpoint-tmp"
# The schema of Orbax's file ``_CHECKPOINT_METADATA``. Orbax fails on any other content.
_OBJECT = options.optional(OBJECT)
_TIME = options.optional(options.whole(0, below=2**63))
_METADATA: Schema = {
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


def _leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yields the name of each array of a tree, and the array or its shape and dtype."""
    for name, leaf in named_leaves(tree):
        if is_key(leaf):
            leaf = (
                jax.random.key_data(leaf)
                if isinstance(leaf, jax.Array)
                else jax.eval_shape(jax.random.key_data, leaf)
            )
        yield name, leaf


def descriptions(tree: Any) -> dict[str, str]:
    """Returns ``{"state/params/Dense_0/bias": "float32 [128]", …}``."""
    return {name: dtype_and_shape(leaf) for name, leaf in _leaves(tree)}


def checksums(tree: Any) -> dict[str, int]:
    """Returns a CRC-32 of each array by its name, whatever its sharding."""
    return {
        name: zlib.crc32(
            np.ascontiguousarray(processes.gather(leaf)).reshape(-1).view(np.uint8).data
        )
        for name, leaf in _leaves(tree)
    }


@contextlib.contextmanager
def os_errors(path: Path) -> Iterator[None]:
    """Converts TensorStore's errors, such as of a full disk, to OSError."""
    try:
        yield
    except ValueError as error:
        if not (found := re.search(r"(?:os_error_code='|OS error )(\d+)", str(error))):
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from error


def raise_unless_damage(error: Exception) -> None:
    """Raises an error of reading a checkpoint, unless its content is the cause."""
    limits = {EACCES, EPERM, EMFILE, ENFILE, ENOMEM}
    network = {ESTALE, ETIMEDOUT, ENOTCONN, EHOSTDOWN, EHOSTUNREACH}
    if isinstance(error, OSError):
        if error.errno in limits | network:
            raise UserError(explain(error)) from error
    elif explain(error) is not None:  # Such as a lack of memory on the device.
        raise error


def check_metadata(folder: Path) -> None:
    """Raises an exception unless Orbax can list a checkpoint and rank it.

    The arrays are not read.
    """
    integrity.check_checkpoint(folder)
    conform(files.read_json(folder / "_CHECKPOINT_METADATA"), _METADATA)
    validation = None
    if (metrics := folder / "metrics" / "metrics").exists():
        validation = files.read_json(metrics)
        Figures.from_json(validation)
    record = read_record(folder / RECORD)
    _check_step(record, int(folder.name))
    recorded = record.get("validation", validation)
    if canonical_json(recorded) != canonical_json(validation):
        raise ValueError("its figures on validation differ")


def _check_step(record: dict[str, Any], step: int) -> None:
    """Raises ValueError if a record belongs to another step than its directory."""
    # Older records contain no step, only a checksum of the step in the state.
    checksum = record["checksums"].get("state/step")
    other = checksum not in (None, zlib.crc32(np.int32(step).tobytes()))
    if record.get("step", step) != step or other:
        raise ValueError(f"its content is of step {record.get('step', 'another')}")


def check_model(folder: Path, saved: dict[str, str], expected: dict[str, str]) -> None:
    """Raises UserError unless the arrays of a checkpoint are those of this model.

    Args:
      folder: directory of the checkpoint.
      saved: its arrays, as :func:`descriptions` returns them.
      expected: the arrays to restore: all, or some parts of the tree.
    """
    parts = {name.split("/")[1] for name in expected}
    saved = {name: kind for name, kind in saved.items() if name.split("/")[1] in parts}
    for name in sorted(saved.keys() | expected.keys()):
        if saved.get(name) != expected.get(name):
            raise UserError(
                f"checkpoint {folder.name} in {folder.parent} does not match this "
                f"model: {name.partition('/')[2]} is {saved.get(name, 'missing')} in "
                f"the checkpoint, {expected.get(name, 'missing')} in the model"
            )


def check_chunks(folder: Path) -> None:
    """Raises ValueError if a chunk of an array is larger than the array.

    TensorStore allocates whole chunks, and their compressed size does not bound them.
    """
    stored = ocp.PyTreeCheckpointHandler().metadata(folder / ARRAYS)
    for array in jax.tree.leaves(stored):
        if any(map(operator.gt, array.storage.chunk_shape, array.shape)):
            raise ValueError(f"the chunks of {array.name} are larger than it is")


def check_checksums(tree: Any, expected: dict[str, int]) -> None:
    """Raises ValueError if a restored array is not the array that was saved."""
    for name, found in checksums(tree).items():
        if expected.get(name, found) != found:
            raise ValueError(f"the checksum of {name} differs")
