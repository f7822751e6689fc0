"""The options of a callable, read from its signature."""

import collections.abc
import contextlib
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any

from flaxmnist import options
from flaxmnist.errors import UserError
from flaxmnist.options import Option, OptionType, declared

_SEQUENCES = (
    tuple,
    list,
    collections.abc.Sequence,
    collections.abc.Iterable,
    collections.abc.Collection,
)


class _Required:
    def __repr__(self) -> str:
        return "required"


# The default of an option without a default.
REQUIRED: Any = _Required()


def _any_whole(value: Any) -> int:
    if isinstance(value, bool | str) or value != int(value):
        raise ValueError
    return int(value)


def _any_text(value: Any) -> str:
    # A text such as "3" is a number on the command line.
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise TypeError
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return tuple(map(_plain, value))
    if value is not None and not isinstance(value, bool | int | float | str):
        raise TypeError
    return value


_SCALARS: dict[Any, OptionType] = {
    bool: options.boolean,
    int: OptionType("a whole number", _any_whole),
    float: OptionType("a number", options.number),
    str: OptionType("a text", _any_text),
}
_PLAIN = OptionType("None, a number, a text, True, False, or a tuple of these", _plain)


def parameters(made: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Returns the parameters that take keyword arguments, by name.

    Raises:
      UserError: the callable has no signature; completes ``"name=value…"``.
    """
    try:
        found = inspect.signature(made).parameters
    except (TypeError, ValueError):
        raise UserError(
            " has no signature; expected a function or a class of Python code"
        ) from None
    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    return {name: one for name, one in found.items() if one.kind in kinds}


def options_of(
    made: Callable[..., Any], filled: Collection[str] = ()
) -> dict[str, Option]:
    """Returns the options of a callable: its parameters and their types, by name.

    A type is that of the annotation, or else of the default: bool, int, float, str,
    `Literal`, tuples and lists of these, and unions of these and None. A parameter with
    any other type keeps its default and is no option. A field of a dataclass that was
    made by :func:`flaxmnist.options.option` brings its own declaration.

    Args:
      made: a function or a class.
      filled: parameters that the library passes.

    Returns:
      the options; the default is `REQUIRED` for a parameter without a default.

    Raises:
      UserError: such a parameter has another type; completes ``"name=value…"``.
    """
    known = declared(made) if isinstance(made, type) else {}
    found = {}
    for name, one in parameters(made).items():
        if name in filled:
            continue
        if name in known:
            found[name] = known[name]
        elif (option := _option(made, one)) is not None:
            found[name] = option
        elif one.default is one.empty:
            raise UserError(
                f" requires {name!r}, which a configuration cannot hold; give it a "
                "default, or the type bool, int, float, str or a tuple of these"
            )
    return found


def _option(made: Callable[..., Any], one: inspect.Parameter) -> Option | None:
    """Returns the option of a parameter; None if a configuration cannot hold it."""
    default = REQUIRED if one.default is one.empty else one.default
    hint = _annotation(made, one.annotation)
    type = _type_of(hint)
    if type is None and default is not None and default is not REQUIRED:
        type = _type_of(default.__class__)
    if type is None and hint is Any:
        type = _PLAIN
    if type is None:
        return None
    if (
        default is None and "None" not in type.expected
    ):  # Also where the annotation is not that exact.
        type = options.optional(type)
    if default is not REQUIRED:
        try:
            default = type.convert(default)
        except (TypeError, ValueError, OverflowError, UserError):
            return None
    owner = getattr(made, "__qualname__", "the callable")
    return Option(type, default, f"Parameter of {owner}.")


def _annotation(made: Callable[..., Any], hint: Any) -> Any:
    """Returns an annotation, evaluated if it is a text; Any if there is none."""
    if hint is inspect.Parameter.empty:
        return Any
    module = sys.modules.get(getattr(made, "__module__", ""))
    holder = types.SimpleNamespace(__annotations__={"hint": hint})
    # The text may name what is only imported for type checkers.
    with contextlib.suppress(Exception):
        hint = typing.get_type_hints(holder, vars(module) if module else {})["hint"]
    return hint


def _type_of(hint: Any) -> OptionType | None:
    """Returns the type of an annotation; None if it is of no use."""
    if isinstance(hint, collections.abc.Hashable) and hint in _SCALARS:
        return _SCALARS[hint]
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _union(args)
    if origin is typing.Literal and all(isinstance(one, str) for one in args):
        return options.one_of(args)
    if origin is tuple and args and args[-1] is not ...:
        return _items([_type_of(one) for one in args], len(args))
    if origin in _SEQUENCES and args:
        return _items([_type_of(args[0])])
    if hint in (tuple, list):
        return _items([_PLAIN])
    return None


def _union(args: tuple[Any, ...]) -> OptionType | None:
    found = [_type_of(one) for one in args if one is not types.NoneType]
    known = [one for one in found if one is not None]
    if not known:
        return None
    type = functools.reduce(_either, known)
    return options.optional(type) if types.NoneType in args else type


def _either(one: OptionType, other: OptionType) -> OptionType:
    def convert(value: Any) -> Any:
        try:
            return one.convert(value)
        except (TypeError, ValueError, OverflowError, UserError):
            return other.convert(value)

    return OptionType(f"{one.expected}, or {other.expected}", convert)


def _items(
    found: list[OptionType | None], length: int | None = None
) -> OptionType | None:
    """Returns the type of a tuple; of any length with the first type if None."""
    items = [one for one in found if one is not None]
    if len(items) < len(found):
        return None

    def convert(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, tuple | list) or len(value) > options.MAX_ITEMS:
            raise TypeError
        each = items if length is not None else items * len(value)
        return tuple(one.convert(item) for one, item in zip(each, value, strict=True))

    many = "any number of" if length is None else str(length)
    expected = ", ".join(dict.fromkeys(one.expected for one in items))
    return OptionType(f"a tuple of {many} values, each {expected}", convert)
