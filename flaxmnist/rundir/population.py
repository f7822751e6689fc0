"""Populations: runs that differ in their seed or in some options only.

A population is a directory. Its ``config.json`` is the configuration that the members
share, ``population.json`` lists the members, and each member is an ordinary run in a
subdirectory.
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flaxmnist import config as configs
from flaxmnist import options as types
from flaxmnist.errors import UserError, did_you_mean
from flaxmnist.rundir import integrity
from flaxmnist.rundir.schemas import OBJECT, Schema, conform
from flaxmnist.runtime import files

FILE = "population.json"
_NAME = re.compile(r"[\w+=,-][\w.+=,-]*", re.ASCII)
# Options, and groups of options, that decide what a model computes.
MODEL = ("model", "precision")


@dataclasses.dataclass(frozen=True)
class Member:
    """A run of a population.

    Attributes:
      name: of its directory, inside that of the population.
      options: in which it differs from other members, with its values.
    """

    name: str
    options: dict[str, Any] = dataclasses.field(hash=False)

    @property
    def setting(self) -> str:
        """The options except the seed, such as ``"optimizer.learning_rate=0.001"``."""
        return ", ".join(
            f"{name}={value}" for name, value in self.options.items() if name != "seed"
        )

    def changed(self, values: Any) -> dict[str, Any]:
        """Returns a configuration as JSON contains it with the options of this member.

        Imports nothing and raises nothing: both may be of an untrusted file.
        """
        changed: dict[str, Any] = dict(values) if isinstance(values, dict) else {}
        for name, value in self.options.items():
            group, _, key = name.rpartition(".")
            if not group:
                changed[key] = value
            elif isinstance(part := changed.get(group), dict):
                changed[group] = {**part, key: value}
        return changed


def names_code(value: Any) -> bool:
    """Returns whether a value contains a text like ``"my_models:ResNet"``."""
    return ":" in json.dumps(value, separators=(",", ""))


def _member(value: Any) -> Member:
    found = conform(value, _MEMBER)
    if names_code(found["options"]):  # The file may be of another person.
        raise ValueError
    return Member(found["name"], found["options"])


def _directory(value: Any) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError
    return str(value)


def _members(value: Any) -> tuple[Member, ...]:
    members = tuple(map(_member, value))
    if not members or len({one.name for one in members}) < len(members):
        raise ValueError
    return members


_MEMBER: Schema = {
    "name": types.OptionType("the name of a directory", _directory),
    "options": OBJECT,
}
_SCHEMA: Schema = {"members": types.OptionType("a list of members", _members)}


def configuration(config: configs.Config, member: Member) -> configs.Config:
    """Returns the configuration of a member.

    Args:
      config: that the members share.
      member: whose options change it.

    Raises:
      UserError: an option of the member is unknown, or its value is invalid.
    """
    try:
        return configs.override(config, member.options.items())
    except UserError as error:
        raise UserError(f"{FILE}: member {member.name}: {error}") from None


def has_one_model(members: Iterable[Member]) -> bool:
    """Returns whether all members have the same model, so that they are an ensemble."""
    names = {name.partition(".")[0] for one in members for name in one.options}
    return names.isdisjoint(MODEL)


def to_json(members: Iterable[Member]) -> str:
    """Returns the content of ``population.json``."""
    content = {"members": [dataclasses.asdict(one) for one in members]}
    return json.dumps(content, indent=2) + "\n"


def saved_members(workdir: Path) -> tuple[Member, ...] | None:
    """Returns the members of a population; None if the directory contains none.

    Raises:
      UserError: ``population.json`` cannot be read, a member is a population, or one
        of them is a link.
    """
    path = workdir / FILE
    try:
        integrity.check_file(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    try:
        found = conform(files.read_json(path), _SCHEMA)["members"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, KeyError, ValueError, UserError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); expected a list of members. Restore it, "
            "or use another --workdir"
        ) from None
    members: tuple[Member, ...] = found
    for one in members:
        folder, found = workdir / one.name, ""
        if folder.is_symlink():
            found = "is a link"
        elif (folder / FILE).exists():
            found = "contains a population"
        if found:
            raise UserError(
                f"{folder} {found}; expected the run directory of a member. Replace it "
                "with that directory"
            )
    return members


def check_no_members(workdir: Path) -> None:
    """Raises UserError if a directory contains runs instead of being one."""
    if any(workdir.glob("fold-*-of-*/config.json")):
        raise UserError(
            f"--workdir={workdir} contains a search for wrong labels; to resume it, "
            "use `flaxmnist labels`. To train a run, use another directory"
        )
    if saved_members(workdir) is not None:
        raise UserError(
            f"--workdir={workdir} contains a population; to resume it, use "
            "`flaxmnist train` or train_population. To train one run, use another "
            "directory"
        )


def check_exists(workdir: Path) -> None:
    """Raises UserError for an unknown member of an existing population."""
    if (workdir / "config.json").exists():
        return
    members = saved_members(workdir.parent)
    if members is not None and workdir.name not in (known := _names(members)):
        raise UserError(
            f"{workdir} is not a member of the population {workdir.parent}"
            f"{did_you_mean(workdir.name, known)}"
        )


def _names(members: Iterable[Member]) -> list[str]:
    return [one.name for one in members]


def merged(workdir: Path, members: Sequence[Member]) -> tuple[Member, ...]:
    """Returns the members that a directory has or shall have, former ones first.

    Args:
      workdir: the directory of the population, which may not exist yet.
      members: to train; if empty, those that the directory lists.

    Raises:
      UserError: the directory contains an ordinary run, or a population with another
        configuration or with further members.
    """
    former = saved_members(workdir)
    if former is None:
        if (workdir / "config.json").exists() or integrity.saved_steps(
            workdir / "checkpoints"
        ):
            raise UserError(
                f"--workdir={workdir} contains a run; expected a new directory, or "
                "that of a population. Use another --workdir"
            )
        return tuple(members)
    wanted = {one.name: one for one in members} or {one.name: one for one in former}
    if missing := [one.name for one in former if one != wanted.get(one.name)]:
        raise UserError(
            f"--workdir={workdir} contains a population with the members "
            f"{', '.join(_names(former))}; expected these and perhaps more, but "
            f"{', '.join(missing)} is missing. Add its seed or value, or use another "
            "--workdir"
        )
    return (*former, *(one for one in wanted.values() if one not in former))
