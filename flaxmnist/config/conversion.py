"""Configurations from and to `ConfigDict`, JSON and overrides; how two runs differ."""

import ast
import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from flaxmnist.config.group import Group, points_of
from flaxmnist.config.schema import GROUPS, Config, declarations, walk
from flaxmnist.errors import UserError, shown
from flaxmnist.options import check, declared
from flaxmnist.runtime import files

# Characters of an override that are parsed; no value is longer.
_MAX_PARSED = 1_000
# The options, and the groups of options, that a run may change when its user allows it.
CHANGEABLE = ("batch_size", "grad_accumulation", "optimizer", "loss", "augment")


def make_config(**changes: Any) -> ConfigDict:
    """Returns the default configuration with `changes`, group by group.

    Raises:
      UserError: as :func:`resolve`.
    """
    return as_config_dict(resolve(ConfigDict(changes, type_safe=False)))


def resolve(config: ConfigDict | Config) -> Config:
    """Returns `config` checked, in canonical form, with every default filled in.

    A `Config` is returned unchanged.

    Raises:
      UserError: an option is unknown, a value is not possible, or two values exclude
        each other.
    """
    if isinstance(config, Config):
        return config
    if not isinstance(config, ConfigDict):
        raise UserError(f"config={shown(config)}: expected what make_config(…) returns")
    return from_dict(config.to_dict())


def as_config_dict(config: Config) -> ConfigDict:
    """Returns a configuration in the form that a configuration file returns."""
    return ConfigDict(as_dict(config), type_safe=False)


def as_dict(config: Group) -> dict[str, Any]:
    """Returns the values by name, in alphabetical order, and groups as dicts."""
    return {
        name: as_dict(value) if isinstance(value, Group) else value
        for name, value in sorted(vars(config).items())
    }


def from_dict(values: Any) -> Config:
    """Returns the configuration of values such as :func:`as_dict` returns.

    Raises:
      ValueError: `values` is not a dict.
      UserError: as :func:`resolve`.
    """
    if not isinstance(values, dict):
        raise ValueError("expected an object of options")
    groups: dict[str, dict[str, Any]] = {}
    for group in GROUPS:
        try:
            groups[group] = {**values.get(group, {})}
        except TypeError:
            raise UserError(
                f"{group}={shown(values[group])}: expected a group of options"
            ) from None
    top = {name: value for name, value in values.items() if name not in GROUPS}
    _check_names(
        [*map(str, top), *(f"{one}.{name}" for one in GROUPS for name in groups[one])],
        groups,
    )
    made: dict[str, Any] = {name: cls.of(groups[name]) for name, cls in GROUPS.items()}
    return Config(**top, **made)


def _check_names(names: Iterable[str], groups: dict[str, dict[str, Any]]) -> None:
    """Raises UserError unless every name is the full name of an option.

    Args:
      names: to check.
      groups: the values by group; callables of the user bring further options.
    """
    known = [*GROUPS, *declarations(listed=True)]
    for group, cls in GROUPS.items():
        own = declared(cls.class_for(groups[group]))
        known += (path for name in own if (path := f"{group}.{name}") not in known)
    valid_elsewhere = declarations().keys()
    for name in names:
        if name not in known and name not in valid_elsewhere:
            group, _, last = name.rpartition(".")
            points = points_of(GROUPS[group]).values() if group in GROUPS else ()
            if any(last in point.filled for point in points):
                raise UserError(
                    f"unknown option {name!r}: flaxmnist sets {last} itself, from the "
                    "data and the other options. Leave it out"
                )
            if similar := " or ".join(map(repr, _similar(name, known))):
                raise UserError(f"unknown option {name!r}; did you mean {similar}?")
            group, dot, _ = name.rpartition(".")
            inside = [path for path in known if path.startswith(f"{group}{dot}")]
            valid = ", ".join(inside or known)
            raise UserError(f"unknown option {name!r}; expected one of {valid}")


def _similar(name: str, known: list[str]) -> list[str]:
    """Returns the options that a wrong name probably stands for.

    They have the same last part, these initials, or else the most similar last part;
    first in the group that the name gives, then in all.
    """
    group, _, last = name.rpartition(".")
    inside = [
        path
        for near in difflib.get_close_matches(group, GROUPS, n=1)
        for path in known
        if path.startswith(f"{near}.")
    ]
    for paths in (inside, known):
        ends = {path: path.rpartition(".")[2] for path in paths}
        for path, end in ends.items():
            if "_" in end and last == "".join(word[0] for word in end.split("_")):
                return [path]
        close = difflib.get_close_matches(last, ends.values(), n=1)
        if close:
            return [path for path, end in ends.items() if end == close[0]]
    return []


def override(
    config: ConfigDict | Config, changes: Mapping[str, Any] | Iterable[tuple[str, Any]]
) -> Config:
    """Returns `config` with changes such as ``{"optimizer.learning_rate": "3e-4"}``.

    Setting one of `num_epochs` and `num_steps` unsets the other. Another callable, such
    as another `model.name`, brings its own defaults.

    Raises:
      UserError: as :func:`resolve`.
    """
    values = as_dict(resolve(config))
    try:
        parsed = {key: _parse(key, text) for key, text in dict(changes).items()}
    except (TypeError, ValueError):
        raise UserError(
            f"overrides={shown(changes)}: expected options with their values, such as "
            "{'optimizer.learning_rate': 3e-4}"
        ) from None
    for group in GROUPS:
        if group in parsed:
            raise UserError(
                f"{group}={shown(parsed[group])}: expected a group of options; set one "
                f"of them, such as {group}.{next(iter(values[group]))}"
            )
    groups = {name: dict(values[name]) for name in GROUPS}
    for key, value in parsed.items():
        group, _, name = key.rpartition(".")
        if group in GROUPS and name in points_of(GROUPS[group]):
            groups[group][name] = value
    _check_names(parsed, groups)
    for group, cls in GROUPS.items():
        points = points_of(cls)
        given = {name: groups[group][name] for name in points}
        # A callable has several names, such as a relative path.
        chosen = check(group, given, points)
        for name, point in points.items():
            if (old := values[group][name]) != chosen[name]:
                # The options of the former callable, and defaults that depend on it.
                for key, own in point.options(old).items():
                    if key not in declared(cls) or values[group][key] == own.default:
                        del values[group][key]
    for one, other in (("num_epochs", "num_steps"), ("num_steps", "num_epochs")):
        if parsed.get(one) is not None and other not in parsed:
            values[other] = None
    for key, value in parsed.items():
        group, _, name = key.rpartition(".")
        (values[group] if group else values)[name] = value
    return from_dict(values)


def _parse(key: str, text: Any) -> Any:
    if not isinstance(text, str):  # A program may give the value itself.
        return text
    lowered = {"true": True, "false": False, "none": None}
    if text.lower() in lowered:
        return lowered[text.lower()]
    # A directory may be called 2024.10.
    if key in ("data.dir", "init_from") or len(text) > _MAX_PARSED:
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text


def to_json(config: Config) -> str:
    """Returns the configuration as JSON text."""
    return json.dumps(as_dict(config), indent=2) + "\n"


def from_json(text: str | bytes) -> Config:
    """Returns the configuration that :func:`to_json` wrote.

    Raises:
      ValueError: the text is not an object in JSON.
      UserError: as :func:`resolve`.
    """
    return from_dict(files.parse_json(text))


def flat(config: Config) -> dict[str, Any]:
    """Returns the values by full name, such as ``"model.name"``, sorted by name."""
    return dict(sorted((path, value) for path, _, value in walk(config)))


def fixed_options(config: Config) -> dict[str, Any]:
    """Returns the values, by full name, that a run keeps when it resumes."""
    return dict(
        sorted((path, value) for path, one, value in walk(config) if not one.mutable)
    )


def changed_options(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Returns the fixed options with different values: both values by full name.

    The value is None where an option does not exist.
    """
    before, after = fixed_options(old), fixed_options(new)
    return {
        name: (before.get(name), after.get(name))
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    }


def differences(old: Config, new: Config, allow_change: bool = False) -> list[str]:
    """Returns a text for each fixed option with different values.

    Such as ``"seed: 1 in the saved run, 0 in this run"``. With `allow_change`, the
    options in `CHANGEABLE` may differ.
    """
    texts = []
    for name, (before, after) in changed_options(old, new).items():
        text = f"{name}: {before} in the saved run, {after} in this run"
        if name.partition(".")[0] not in CHANGEABLE:
            texts.append(text)
        elif not allow_change:
            texts.append(f"{text} (--allow_change permits it for a single run)")
    return texts
