"""The configuration of a run on disk, and where the code that it names was found.

``config.json`` has the options. If they name callables of the user,
``extensions.json`` has, for each one, the module that contains it.
"""

import dataclasses
import json
from pathlib import Path

from flaxmnist import config as configs
from flaxmnist import options, user_code
from flaxmnist.errors import UserError
from flaxmnist.rundir import integrity
from flaxmnist.rundir.schemas import Schema, conform
from flaxmnist.runtime import files
from flaxmnist.runtime.console import Console

EXTENSIONS = "extensions.json"
_TEXT = options.OptionType("a text", lambda value: str(value or ""))
_RECORD: dict[str, Schema] = dict.fromkeys(
    ("option", "spec", "file", "folder", "sha256"), _TEXT
)


@dataclasses.dataclass(frozen=True)
class _Record:
    """A callable of the user; see :class:`flaxmnist.user_code.Loaded`."""

    option: str
    spec: str
    file: str
    folder: str
    sha256: str


_NAMES = [field.name for field in dataclasses.fields(_Record)]
_SCHEMA: Schema = dict.fromkeys(_NAMES, _TEXT)


def record_code(config: configs.Config) -> str | None:
    """Returns the content of ``extensions.json``; None if no code is the user's."""
    records = [
        _Record(path, found.spec, found.file, found.folder, found.sha256)
        for path, found in configs.user_code(config)
    ]
    if not records:
        return None
    return json.dumps([dataclasses.asdict(one) for one in records], indent=2) + "\n"


def _import_code(workdir: Path) -> list[_Record]:
    """Imports the callables of the user that a run recorded, from where they were.

    Raises:
      UserError: ``extensions.json`` cannot be read, or a callable is missing.
    """
    user_code.refuse_inside(workdir)
    path = workdir / EXTENSIONS
    try:
        found = [conform(each, _SCHEMA) for each in files.read_json(path)]
        records = [_Record(**{key: each[key] for key in _NAMES}) for each in found]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); expected a list of callables. Restore "
            "it, or remove it and run in the directory that contains your code"
        ) from None
    for one in records:
        if one.folder:
            user_code.search(one.folder)
    for one in records:
        try:
            user_code.load(one.spec)
        except UserError as error:
            place = one.file or "a notebook"
            raise UserError(
                f"{workdir} was trained with {one.option}={one.spec!r} of {place}, "
                f"which cannot be imported any more.\n{one.option}={one.spec!r}{error}"
            ) from None
    return records


def changed_code(workdir: Path) -> list[str]:
    """Returns a text for each callable of the user whose source is another now."""
    changes = []
    for one in _import_code(workdir):
        now = user_code.load(one.spec)
        if one.sha256 and now.sha256 and one.sha256 != now.sha256:
            before = "" if now.file == one.file else f" (it was {one.file})"
            changes.append(
                f"{one.option}={one.spec!r}: the source in {now.file}{before} has "
                "changed since the run was trained"
            )
    return changes


def saved_config(workdir: Path) -> configs.Config | None:
    """Returns the configuration of the run in `workdir`; None if it contains no run.

    The callables of the user that it names are imported.

    Raises:
      UserError: it cannot be read, or a callable cannot be imported.
    """
    path = workdir / "config.json"
    try:
        content = files.read_bytes(path, files.MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); expected a file that this user "
            "can read. Correct it, or use another --workdir"
        ) from None
    except UserError as error:
        raise _unreadable(path, error) from None
    _import_code(workdir)
    try:
        return configs.from_json(content)
    except (ValueError, UserError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} cannot be read ({error}). Remove it and give --config, or use "
        "another --workdir"
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
    changes = changed_code(workdir)
    if changes and not allow_change:
        raise UserError(
            f"{'; '.join(changes)}. Restore the former source, use another --workdir, "
            "or add --allow_change"
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
