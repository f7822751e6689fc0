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
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): use another --workdir"
        ) from None


def saved_summary(workdir: Path, step: int) -> dict[str, Any] | None:
    """Returns ``summary.json`` if it is of that step."""
    try:
        summary = json.loads((workdir / "summary.json").read_text())
    except (OSError, ValueError):
        return None
    return summary if summary.get("step") == step else None


def check(workdir: Path, config: ConfigDict) -> None:
    """Holds the folder against a configuration; writes nothing.

    Raises:
      UserError: it is a file, or holds a run that differs in what matters.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir {workdir} is a file: expected a folder")
    before = saved_config(workdir)
    changed = configs.differences(before, config) if before else []
    if changed:
        raise UserError(
            f"{workdir} holds a run of another configuration: use another --workdir, "
            f"or its options\n{'; '.join(changed)}"
        )


def make_writable(workdir: Path) -> None:
    """Makes the folder.

    Raises:
      UserError: it cannot be made, or nothing can be written into it.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise UserError(
            f"--workdir {workdir} cannot be written ({error.strerror}): use another"
        ) from None
