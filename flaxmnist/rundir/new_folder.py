"""New run directories and their names."""

import contextlib
import itertools
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import jax

from flaxmnist.errors import UserError
from flaxmnist.runtime import durable


@contextlib.contextmanager
def chosen(workdir: Path | None, spec: str) -> Iterator[Path]:
    """Yields `workdir`, or else a new directory, ``runs/<config>-<UTC time>``.

    The new directory is removed after the block if it is still empty.

    Args:
      workdir: the directory that the user named, if any.
      spec: of the configuration: ``FILE.py`` or ``NAME``, either with ``:VARIANT``.

    Raises:
      UserError: the new directory cannot be created, or several processes need one.
    """
    if workdir is not None:
        yield workdir
        return
    if jax.process_count() > 1:
        raise UserError(
            "training with several processes requires --workdir DIR, a directory that "
            "all of them can reach"
        )
    name = f"{Path(spec.partition(':')[0]).stem}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    with created(Path("runs"), name) as path:
        yield path


@contextlib.contextmanager
def created(parent: Path, name: str) -> Iterator[Path]:
    """Creates a directory that did not exist: `name`, or with a suffix -2, -3, ….

    It is removed after the block if it is still empty.

    Raises:
      UserError: it cannot be created.
    """
    try:
        made = durable.make_directory(parent)
        for number in itertools.count(1):
            path = parent / (name if number == 1 else f"{name}-{number}")
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                durable.sync(parent)
                break
    except OSError as error:
        raise UserError(
            f"{parent} cannot be written ({error.strerror}); expected --workdir DIR"
        ) from None
    try:
        yield path
    finally:
        for folder in (path, *reversed(made)):
            with contextlib.suppress(OSError):  # It is not empty.
                folder.rmdir()
