"""Option types, and the error for an invalid value.

An :class:`OptionType` converts a value to its canonical form or rejects it;
:func:`check` applies a table of them. A mistake raises :class:`UserError`, which the
command line prints as one or two lines, without a traceback.
"""

import dataclasses
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flaxmnist import paths
from flaxmnist.errors import UserError, did_you_mean, shown

# Steps are counted in int32.
MAX_STEPS = 2**31
# Items of a tuple, such as a model's layers: each is compiled.
MAX_ITEMS = 1_000


@dataclasses.dataclass(frozen=True)
class OptionType:
    """The values that an option accepts.

    Attributes:
      expected: completes the sentence "expected …".
      convert: returns the canonical value; raises `ValueError` or `TypeError`, or a
        UserError that completes the sentence ``"name=value…"``.
    """

    expected: str
    convert: Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Option:
    """An option: its type and default, one sentence of help, and whether it is mutable.

    A run that resumes may change a mutable option.
    """

    type: OptionType
    default: Any
    help: str
    mutable: bool = False


def option(default: Any, type: OptionType, help: str, *, mutable: bool = False) -> Any:
    """Declares an option as a field of a dataclass; see :class:`Option`."""
    metadata = {"option": Option(type, default, help, mutable)}
    return dataclasses.field(default=default, metadata=metadata)


def declared(cls: type) -> dict[str, Option]:
    """Returns the options that a dataclass declares or inherits, by name.

    A subclass may give an inherited option another default, as a plain value.
    """
    found: dict[str, Option] = {}
    for base in reversed(cls.__mro__):
        for field in vars(base).get("__dataclass_fields__", {}).values():
            option = field.metadata.get("option", found.get(field.name))
            if option is not None:
                found[field.name] = dataclasses.replace(option, default=field.default)
    return found


def whole(minimum: int, *, below: float = math.inf) -> OptionType:
    """A whole number from `minimum`, under `below`; ``2.0`` is taken for 2."""

    def convert(value: Any) -> int:
        if isinstance(value, bool | str) or value != int(value):
            raise ValueError
        if not minimum <= value < below:
            raise ValueError
        return int(value)

    high = "" if below == math.inf else f" and less than {below:,}"
    return OptionType(f"a whole number, {minimum} or more{high}", convert)


def real(minimum: float, *, below: float = math.inf, above: bool = False) -> OptionType:
    """A finite number from `minimum` (greater than it, if `above`), under `below`."""

    def convert(value: Any) -> float:
        given = number(value)
        if given < minimum or given >= below or (above and given == minimum):
            raise ValueError
        return given

    low = f"greater than {minimum:g}" if above else f"{minimum:g} or more"
    high = "" if below == math.inf else f" and less than {below:g}"
    return OptionType(f"a number, {low}{high}", convert)


def one_of(names: Iterable[str]) -> OptionType:
    """One of a few names."""
    names = tuple(names)

    def convert(value: Any) -> str:
        if not isinstance(value, str) or value not in names:
            raise UserError(f" is unknown{did_you_mean(value, names)}")
        return value

    return OptionType(f"one of {', '.join(names)}", convert)


def some_of(names: Iterable[str], always: str | None = None) -> OptionType:
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
    return OptionType(f"names out of ({', '.join(names)}){among}", convert)


def wholes(
    minimum: int, most: int, example: str, length: int | None = None
) -> OptionType:
    """A tuple of whole numbers; one number stands for all, where `length` is given."""
    item = whole(minimum, below=most + 1)

    def convert(value: Any) -> tuple[int, ...]:
        if isinstance(value, tuple | list | range):
            items = tuple(value)
        else:
            items = (value,) * (length or 1)
        if len(items) > MAX_ITEMS or length not in (None, len(items)):
            raise ValueError
        return tuple(map(item.convert, items))

    many = "" if length is None else f"{length} "
    return OptionType(
        f"{many}whole numbers from {minimum} to {most:,}, such as {example}", convert
    )


def sizes(length: int | None = None, most: int = 65_536) -> OptionType:
    """A tuple of whole numbers from 1 to `most` (of that many, if `length`)."""
    return wholes(1, most, "(128, 32)" if length is None else "(2, 2)", length)


def optional(type: OptionType) -> OptionType:
    """That type, or None."""
    return OptionType(
        f"{type.expected}, or None",
        lambda value: None if value is None else type.convert(value),
    )


def _epochs(value: Any) -> float:
    number = real(0, above=True, below=MAX_STEPS).convert(value)
    return int(number) if number.is_integer() else number


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def number(value: Any) -> float:
    """Returns a finite number as a float.

    Raises:
      TypeError, ValueError: `value` is not a finite number.
    """
    if isinstance(value, bool | str) or not math.isfinite(value):
        raise ValueError
    return float(value)


def _folder(value: Any) -> str:
    # Absolute: a run may be continued from another current directory.
    return os.path.abspath(paths.parse(_text(value)))


def _text(value: Any) -> str:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)  # A directory may be named by a number.
    if not isinstance(value, str) or not value or "\0" in value:
        raise TypeError
    if max(len(os.fsencode(part)) for part in value.split("/")) > paths.MAX_NAME:
        raise ValueError  # No file system accepts such a name.
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


epochs = OptionType("a number, greater than 0", _epochs)
boolean = OptionType("True or False", _boolean)
text = OptionType("a text", _text)
folder = OptionType("a directory", _folder)
duration = OptionType(
    'a number of steps, 1 or more, or a text such as "2 epochs"', _duration
)


def to_steps(duration: int | str, steps_per_epoch: int) -> int:
    """Returns a :data:`duration` in steps, at least one."""
    if isinstance(duration, str):
        return max(1, round(float(duration.split()[0]) * steps_per_epoch))
    return duration


def check(
    group: str, values: Mapping[str, Any], types: Mapping[str, OptionType]
) -> dict[str, Any]:
    """Returns `values` in the canonical form of their `types`.

    Args:
      group: prefix of the names in errors, such as ``"optimizer"``; "" for none.
      values: name → value as given.
      types: name → type.

    Raises:
      UserError: a name is unknown, or a value is not of its type.
    """
    prefix = f"{group}." if group else ""
    checked = {}
    for name, value in values.items():
        if name not in types:
            hint = did_you_mean(name, types)
            raise UserError(f"unknown option '{prefix}{name}'{hint}")
        try:
            checked[name] = types[name].convert(value)
        except UserError as error:
            raise UserError(f"{prefix}{name}={shown(value)}{error}") from None
        except (TypeError, ValueError, OverflowError):
            raise UserError(
                f"{prefix}{name}={shown(value)}: expected {types[name].expected}"
            ) from None
    return checked


def canonicalize(group: str, instance: Any) -> None:
    """Checks the declared options of a frozen object; sets them in canonical form.

    Args:
      group: prefix of the names in errors, as for :func:`check`.
      instance: of a class that declares options; see :func:`option`.

    Raises:
      UserError: a value is not of its option's type.
    """
    types = {name: one.type for name, one in declared(type(instance)).items()}
    given = {name: getattr(instance, name) for name in types}
    for name, value in check(group, given, types).items():
        object.__setattr__(instance, name, value)
