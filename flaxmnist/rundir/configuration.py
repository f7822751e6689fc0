"""The configuration of a run on disk, ``config.json``."""

from pathlib import Path
from typing import Any

from flaxmnist import config as configs
from flaxmnist import user_code
from flaxmnist.errors import UserError
from flaxmnist.rundir import integrity, trust
from flaxmnist.runtime import files
from flaxmnist.runtime.console import Console


def saved_values(workdir: Path) -> dict[str, Any] | None:
    """Returns the content of ``config.json``, unchecked; None if it does not exist.

    Raises:
      UserError: it cannot be read.
    """
    path = workdir / "config.json"
    try:
        values = files.read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); expected a file that this user "
            "can read. Correct it, or use another --workdir"
        ) from None
    except (ValueError, UserError) as error:
        raise _unreadable(path, error) from None
    if not isinstance(values, dict):
        raise _unreadable(path, ValueError("expected an object of options"))
    return values


def saved_config(workdir: Path, *, alone: bool = False) -> configs.Config | None:
    """Returns the configuration of the run in `workdir`; None if it contains no run.

    The callables of the user that it names are imported.

    Args:
      workdir: the run directory.
      alone: whether the other processes of a run do not call this function.

    Raises:
      UserError: it cannot be read, names code that the user did not name, or a callable
        cannot be imported.
    """
    trust.permit_signed(workdir, alone=alone)
    if (values := saved_values(workdir)) is None:
        return None
    user_code.refuse_inside(workdir)
    trust.check(values, workdir)
    try:
        return configs.from_dict(values)
    except (ValueError, UserError) as error:
        raise _unreadable(workdir / "config.json", error) from None


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} cannot be read ({error}). Remove it and give --config to flaxmnist "
        "train, which writes it again, or use another --workdir"
    )


def check(workdir: Path, config: configs.Config, allow_change: bool = False) -> bool:
    """Compares the run in the directory with a configuration; writes nothing.

    Args:
      workdir: the run directory.
      config: to compare.
      allow_change: whether the options in `configs.CHANGEABLE`, and the source of the
        callables of the user, may differ.

    Returns:
      whether these may differ in its checkpoints: also if an earlier process, which
      wrote ``config.json``, was allowed to change them.

    Raises:
      UserError: the directory contains a run with other fixed options.
    """
    # Read it in any case: a config.json of another program must not be replaced.
    before = saved_config(workdir)
    # A run without a checkpoint may change its configuration.
    if before is None or not integrity.saved_steps(workdir / "checkpoints"):
        return allow_change
    check_same(before, config, allow_change)
    changes = trust.changed_code(workdir, before)
    if changes and not allow_change:
        raise UserError(
            f"{'; '.join(changes)}. Restore the former source, use another --workdir, "
            "or, for a single run, add --allow_change"
        )
    for change in changes:
        Console().warn(f"{change}; the run continues with the new source")
    return True


def check_same(
    before: configs.Config, config: configs.Config, allow_change: bool = False
) -> None:
    """Raises UserError if the fixed options of two configurations differ.

    With `allow_change`, those in `configs.CHANGEABLE` may differ.
    """
    if changed := configs.differences(before, config, allow_change):
        raise UserError(
            "--workdir contains a run with a different configuration; use another "
            f"directory, or its options\n{'; '.join(changed)}"
        )
