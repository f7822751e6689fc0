"""Which code of a run directory may run: only code that the user named.

A run directory of another person may name any function of an installed package, with
any options. ``extensions.json`` lists the code that a run names, each with a signature
of the user who trained it. Other code runs only if the user of this process named it
as well, or trusts the run directory.
"""

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flaxmnist import config as configs
from flaxmnist import options, user_code
from flaxmnist.errors import UserError, printable, shown
from flaxmnist.rundir import integrity, population
from flaxmnist.rundir.manifest import canonical_json
from flaxmnist.rundir.schemas import OBJECT, Schema, conform
from flaxmnist.runtime import files, processes, signing
from flaxmnist.runtime.console import Console

EXTENSIONS = "extensions.json"
_TEXT = options.OptionType("a text", lambda value: str(value or ""))
_SCHEMA: Schema = {
    **dict.fromkeys(("option", "spec", "file", "folder", "sha256", "signature"), _TEXT),
    "options": OBJECT,
}


@dataclasses.dataclass(frozen=True)
class _Record(configs.NamedCode):
    """Code that a run names.

    Attributes:
      file: its source file; "" in a notebook.
      folder: the directory to search for its module; "" in a notebook.
      sha256: hash of its source; "" if that is not known or installed.
      signature: of the other values, by the user who trained the run; "" without a key.
    """

    file: str
    folder: str
    sha256: str
    signature: str = ""

    @property
    def content(self) -> str:
        """The text that is signed."""
        return canonical_json({**dataclasses.asdict(self), "signature": ""})


# The code that may run, and its record if it is of a run directory.
_permitted: dict[str, _Record | None] = {}


def _key(code: configs.NamedCode) -> str:
    return canonical_json([code.option, code.spec, code.options])


def permit(config: configs.Config) -> None:
    """Permits the code of a configuration, which the user of this process gave."""
    for code in configs.named_code(configs.as_dict(config)):
        _permitted.setdefault(_key(code), None)


def permit_signed(workdir: Path, *, alone: bool = False) -> None:
    """Permits the code of a run directory that this user named when it was trained.

    Args:
      workdir: the run directory.
      alone: whether the other processes of a run do not call this function. Otherwise
        process 0 decides, because other machines may have another key.

    Raises:
      UserError: ``extensions.json`` cannot be read.
    """
    signed = []
    if alone or processes.is_first():
        signed = [
            one
            for one in _records(workdir)
            if signing.is_signed(one.content, one.signature)
        ]
    if not alone:
        found = processes.broadcast([dataclasses.asdict(one) for one in signed])
        signed = [_Record(**one) for one in found]
    _permit_records(signed)


def permit_all(workdir: Path) -> None:
    """Permits all code that a run directory names now: the user has read it.

    The directory may be that of a population.

    Raises:
      UserError: ``extensions.json`` or ``population.json`` cannot be read.
    """
    members = population.saved_members(workdir) or ()
    for folder in (workdir, *(workdir / one.name for one in members)):
        user_code.refuse_inside(folder)
        named = {_key(code) for code in _named_in(folder)}
        _permitted.update(dict.fromkeys(named - _permitted.keys()))
        _permit_records([one for one in _records(folder) if _key(one) in named])


def _permit_records(records: list[_Record]) -> None:
    for one in records:
        _permitted[_key(one)] = one
        if one.folder:
            user_code.search(one.folder)


def check(values: Any, workdir: Path) -> None:
    """Imports the code that a configuration in a run directory names.

    Raises:
      UserError: the user did not name it, or it cannot be imported. If the user did not
        name it, nothing is imported.
    """
    named = configs.named_code(values)
    if any(_key(code) not in _permitted for code in named):
        raise _not_permitted(workdir, named)
    for code in named:
        try:
            user_code.load(code.spec)
        except UserError as error:
            places = {_key(one): one.file for one in _records(workdir)}
            place = places.get(_key(code), "an unknown file") or "a notebook"
            raise UserError(
                f"{workdir} was trained with {code.option}={code.spec!r} of {place}, "
                f"which cannot be imported any more.\n{code.option}={code.spec!r}"
                f"{error}"
            ) from None


def _not_permitted(workdir: Path, named: list[configs.NamedCode]) -> UserError:
    folders = {_key(one): one.folder for one in _records(workdir)}
    found = {_key(code): code for code in [*named, *_named_in(workdir)]}
    listed = "".join(
        f"\n  {_shown(code, folders.get(key, ''))}"
        for key, code in found.items()
        if key not in _permitted
    )
    if problem := signing.key_problem():
        listed += f"\n{problem}"
    return UserError(
        f"{workdir} names code that you did not name on this machine; expected a run "
        f"of yours. To run this code, read it and add --trust_code, or trust_code=True "
        f"in open_run:{listed}"
    )


def _shown(code: configs.NamedCode, folder: str) -> str:
    text, name = f"{code.option}={shown(code.spec)}", code.option.rpartition(".")[2]
    if others := {key: one for key, one in code.options.items() if key != name}:
        given = (f"{printable(key)}={shown(one)}" for key, one in others.items())
        text += f" with {', '.join(given)}"
    return f"{text}, first searched for in {shown(folder)}" if folder else text


def _named_in(workdir: Path) -> Iterator[configs.NamedCode]:
    """Yields the code that the configurations in a run directory name."""
    values = _read(workdir / "config.json")
    yield from configs.named_code(values)
    members: tuple[population.Member, ...] | None = None
    with contextlib.suppress(UserError):  # Reading it for use reports the error.
        members = population.saved_members(workdir)
    for one in members or ():
        yield from configs.named_code(one.changed(values))
    others = [workdir / "summary.json"]
    for step in integrity.saved_steps(workdir / "checkpoints"):
        others.append(workdir / "checkpoints" / str(step) / "record" / "metadata")
    for path in others:
        content = _read(path)
        if isinstance(content, dict):
            yield from configs.named_code(content.get("config"))


def _read(path: Path) -> Any:
    try:
        return files.read_json(path)
    except (OSError, ValueError, UserError):  # Reading it for use reports the error.
        return None


def _records(workdir: Path) -> list[_Record]:
    path = workdir / EXTENSIONS
    try:
        # Older versions signed nothing.
        found = [
            conform({"signature": "", **each}, _SCHEMA)
            for each in files.read_json(path)
        ]
        names = [field.name for field in dataclasses.fields(_Record)]
        return [_Record(**{name: each[name] for name in names}) for each in found]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError, TypeError, KeyError, UserError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); expected a list of callables. Restore "
            "it, or remove it, run in the directory that contains your code, and add "
            "--trust_code"
        ) from None


def changed_code(
    workdir: Path, config: configs.Config, sources: dict[str, str] | None = None
) -> list[str]:
    """Returns a text for each callable of the user whose source has changed.

    Args:
      workdir: the run directory.
      config: names the callables.
      sources: SHA-256 of their former sources by specification, as a checkpoint
        records them; those in ``extensions.json`` if None.
    """
    records, changes = {one.spec: one for one in _records(workdir)}, []
    if sources is None:
        sources = {spec: one.sha256 for spec, one in records.items()}
    for code, now in configs.user_code(config):
        former, record = sources.get(code.spec), records.get(code.spec)
        if former and now.sha256 and former != now.sha256:
            moved = record is not None and record.file != now.file
            before = f" (it was {record.file})" if record and moved else ""
            changes.append(
                f"{code.option}={code.spec!r}: the source in {now.file}{before} has "
                "changed since the run was trained"
            )
    return changes


def record_code(workdir: Path, *named: configs.Config) -> str | None:
    """Returns the content of ``extensions.json``; None if no code is the user's.

    Earlier code is kept, because checkpoints name it.

    Args:
      workdir: the run directory.
      *named: its configuration, or those of the members of a population.
    """
    kept = {_key(one): one for one in _records(workdir)}
    records = {key: one for key, one in kept.items() if _permitted.get(key) == one}
    for code, found in itertools.chain.from_iterable(map(configs.user_code, named)):
        key = _key(code)
        records.pop(key, None)  # The newest are last.
        records[key] = _Record(
            **vars(code), file=found.file, folder=found.folder, sha256=found.sha256
        )
    try:
        signed = [
            dataclasses.replace(one, signature=signing.sign(one.content))
            for one in records.values()
        ]
    except UserError as error:
        signed = list(records.values())
        Console().warn(f"{error}; until then, opening {workdir} requires --trust_code")
    if not records:
        return None
    return json.dumps([dataclasses.asdict(one) for one in signed], indent=2) + "\n"
