"""What a user may say, and what to answer when it cannot be taken.

Every option of the library is described once, by a :class:`Kind`; :func:`check`
holds given values against a table of them. A mistake raises :class:`UserError`,
which the command line prints as one or two lines, without a traceback.
"""

import dataclasses
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from flaxmnist.errors import UserError, did_you_mean, shown

# Steps are counted in int32.
MAX_STEPS = 2**31
# Bytes of a file's name and of a directory's path. Linux takes paths of 4,096 bytes, of
# which those of a checkpoint's files leave this many to the run directory.
MAX_NAME, MAX_PATH = 255, 3_800
# Of a tuple, such as a model's layers: each is compiled.
MOST_ITEMS = 1_000


def path_of(value: str | os.PathLike[str], option: str = "--workdir") -> Path:
    """Returns the local path that a user named, with a leading ``~`` expanded.

    Args:
      value: the path.
      option: where it was given, for the error.

    Raises:
      UserError: it cannot be used on this machine.
    """
    try:
        return _path(value)
    except UserError as error:
        raise UserError(f"{option}={shown(_text_of(value))}{error}") from None


def _text_of(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _path(value: Any) -> Path:
    """Returns the path, or raises UserError with the end of a sentence about it."""
    text = _text_of(value)
    if not isinstance(text, str) or not text:
        raise UserError(": expected a path")
    # A `Path` has one slash where a URL has two.
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        raise UserError(" is a URL; expected a path on this machine")
    if re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", text):
        raise UserError(
            " holds a control character, or bytes that are not UTF-8; expected a "
            "path of printable characters. Rename it"
        )
    # TensorStore would take it for a slash.
    if os.sep == "/" and "\\" in text:
        raise UserError(" holds a backslash; expected a path with / between its names")
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise UserError(
            " has no home directory to stand for ~; expected an existing user and, for "
            "~ alone, the environment variable HOME"
        ) from None
    try:
        full = os.path.abspath(path)
    except OSError:
        raise UserError(
            " is relative, but the current directory does not exist any more. Change "
            "to another directory, or give a path that starts with /"
        ) from None
    names = [len(os.fsencode(name)) for name in full.split(os.sep)]
    if max(names) > MAX_NAME or sum(names) + len(names) > MAX_PATH:
        raise UserError(
            f" is too long; expected at most {MAX_NAME} bytes in each name and "
            f"{MAX_PATH:,} in all"
        )
    return path


@dataclasses.dataclass(frozen=True)
class Kind:
    """What an option may hold.

    Attributes:
      expected: completes the sentence "expected …".
      convert: returns the canonical value; raises `ValueError` or `TypeError`, or a
        UserError that completes the sentence ``"name=value…"``.
    """

    expected: str
    convert: Callable[[Any], Any]


def whole(minimum: int, *, below: float = math.inf) -> Kind:
    """A whole number from `minimum`, under `below`; ``2.0`` is taken for 2."""

    def convert(value: Any) -> int:
        if isinstance(value, bool | str) or value != int(value):
            raise ValueError
        if not minimum <= value < below:
            raise ValueError
        return int(value)

    high = "" if below == math.inf else f" and less than {below:,}"
    return Kind(f"a whole number, {minimum} or more{high}", convert)


def real(minimum: float, *, below: float = math.inf, above: bool = False) -> Kind:
    """A finite number from `minimum` (greater than it, if `above`), under `below`."""

    def convert(value: Any) -> float:
        given = _number(value)
        if given < minimum or given >= below or (above and given == minimum):
            raise ValueError
        return given

    low = f"greater than {minimum:g}" if above else f"{minimum:g} or more"
    high = "" if below == math.inf else f" and less than {below:g}"
    return Kind(f"a number, {low}{high}", convert)


def one_of(names: Iterable[str]) -> Kind:
    """One of a few names."""
    names = tuple(names)

    def convert(value: Any) -> str:
        if not isinstance(value, str) or value not in names:
            raise UserError(f" is unknown{did_you_mean(value, names)}")
        return value

    return Kind(f"one of {', '.join(names)}", convert)


def some_of(names: Iterable[str], always: str | None = None) -> Kind:
    """A tuple of a few names, or a text such as ``"a,b"``; `always` among them."""
    names = tuple(names)

    def convert(value: Any) -> tuple[str, ...]:
        items = value.split(",") if isinstance(value, str) else tuple(value or ())
        items = [item.strip() if isinstance(item, str) else item for item in items]
        chosen = tuple(dict.fromkeys(map(one_of(names).convert, items)))
        if always is not None and always not in chosen:
            raise ValueError
        return chosen

    among = f", {always} among them" if always else ""
    return Kind(f"names out of ({', '.join(names)}){among}", convert)


def wholes(minimum: int, most: int, example: str, length: int | None = None) -> Kind:
    """A tuple of whole numbers; one number stands for all, where `length` is given."""
    item = whole(minimum, below=most + 1)

    def convert(value: Any) -> tuple[int, ...]:
        if isinstance(value, tuple | list | range):
            items = tuple(value)
        else:
            items = (value,) * (length or 1)
        if len(items) > MOST_ITEMS or length not in (None, len(items)):
            raise ValueError
        return tuple(map(item.convert, items))

    many = "" if length is None else f"{length} "
    return Kind(
        f"{many}whole numbers from {minimum} to {most:,}, such as {example}", convert
    )


def sizes(length: int | None = None, most: int = 65_536) -> Kind:
    """A tuple of whole numbers from 1 to `most` (of that many, if `length`)."""
    return wholes(1, most, "(128, 32)" if length is None else "(2, 2)", length)


def optional(kind: Kind) -> Kind:
    """That kind, or None."""
    return Kind(
        f"{kind.expected}, or None",
        lambda value: None if value is None else kind.convert(value),
    )


def _epochs(value: Any) -> float:
    number = real(0, above=True, below=MAX_STEPS).convert(value)
    return int(number) if number.is_integer() else number


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool | str) or not math.isfinite(value):
        raise ValueError
    return float(value)


def _folder(value: Any) -> str:
    return os.path.normpath(_path(_text(value)))


def _text(value: Any) -> str:
    value = _text_of(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)  # A folder may be named by a number.
    if not isinstance(value, str) or not value or "\0" in value:
        raise TypeError
    if max(len(os.fsencode(part)) for part in value.split("/")) > MAX_NAME:
        raise ValueError  # What no file system takes.
    return value


def _duration(value: Any) -> int | str:
    """Canonical form: a number of steps, or the text ``"<number> epochs"``."""
    match = re.fullmatch(r"([0-9.e+-]+)\s*(|steps?|epochs?)", str(value).strip())
    if isinstance(value, bool) or not match:
        raise ValueError
    number, unit = float(match[1]), match[2]
    if unit.startswith("epoch"):
        return f"{epochs.convert(number)} epochs"
    return whole(1, below=MAX_STEPS).convert(number)


count = whole(1, below=MAX_STEPS)
seed = whole(0, below=2**32)


def by_name(kind: Kind) -> Kind:
    """An object of any names, whose values are of a kind."""

    def convert(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise TypeError
        return {name: kind.convert(item) for name, item in value.items()}

    return Kind(f"an object of values, each {kind.expected}", convert)


def _share(value: Any) -> float:
    if not 0 <= _number(value) <= 1:
        raise ValueError
    return float(value)


def _any_number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    return float(value)


number = Kind("a number", _any_number)
share = Kind("a number from 0 to 1", _share)
epochs = Kind("a number, greater than 0", _epochs)
boolean = Kind("True or False", _boolean)
text = Kind("a text", _text)
folder = Kind("a folder", _folder)
duration = Kind('a number of steps, 1 or more, or a text such as "2 epochs"', _duration)


def to_steps(duration: int | str, steps_per_epoch: int) -> int:
    """Returns a :data:`duration` in steps, at least one."""
    if isinstance(duration, str):
        return max(1, round(float(duration.split()[0]) * steps_per_epoch))
    return duration


# What a value in a file may be: of a kind, or an object of such values by name.
Schema = Kind | dict[str, "Schema"]


def conform(value: Any, schema: Schema) -> Any:
    """Returns `value` in the canonical form of `schema`.

    A name that is missing counts as None; names that the schema lacks are kept.

    Raises:
      ValueError: it is something else.
    """
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            raise ValueError("expected an object")
        parts = {name: conform(value.get(name), part) for name, part in schema.items()}
        return value | {name: parts[name] for name in parts if name in value}
    try:
        return schema.convert(value)
    except (TypeError, ValueError, OverflowError, UserError):
        raise ValueError(f"{shown(value)}: expected {schema.expected}") from None


def check(
    group: str, values: Mapping[str, Any], kinds: Mapping[str, Kind]
) -> dict[str, Any]:
    """Holds `values` against `kinds` and returns them in canonical form.

    Args:
      group: where the values stand, such as ``"optimizer"``; "" for the top.
      values: name → value as given.
      kinds: name → what it may hold.

    Raises:
      UserError: a name is unknown or a value is not of its kind.
    """
    prefix = f"{group}." if group else ""
    checked = {}
    for name, value in values.items():
        if name not in kinds:
            raise UserError(f"no option {prefix}{name}{did_you_mean(name, kinds)}")
        try:
            checked[name] = kinds[name].convert(value)
        except UserError as error:
            raise UserError(f"{prefix}{name}={shown(value)}{error}") from None
        except (TypeError, ValueError, OverflowError):
            raise UserError(
                f"{prefix}{name}={shown(value)}: expected {kinds[name].expected}"
            ) from None
    return checked
