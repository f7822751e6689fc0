"""The folder of a run: whether it can be used, and what an earlier process left."""

import json
import tempfile
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from flaxmnist import config as configs
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


def started(workdir: Path) -> bool:
    """Returns whether there is a checkpoint in the folder."""
    return any(path.name.isdigit() for path in workdir.glob("checkpoints/*"))


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
    if started(workdir) and (before := saved_config(workdir)):
        check_same(before, config)


def check_same(before: ConfigDict, config: ConfigDict) -> None:
    """Raises UserError if a run's configuration differs in what matters."""
    if changed := configs.differences(before, config):
        raise UserError(
            "--workdir holds a run of another configuration: use another, or its "
            f"options\n{'; '.join(changed)}"
        )


def make_writable(workdir: Path) -> None:
    """Makes the folder.

    Raises:
      UserError: it cannot be made, or nothing can be written into it.
    """
    try:
        for folder in (workdir, workdir / "checkpoints", workdir / "tensorboard"):
            folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise UserError(
            f"--workdir {workdir} cannot be written ({error.strerror}): use another"
        ) from None
