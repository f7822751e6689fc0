"""Groups of options, and the options that the callables they name bring."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, Self, cast

from flaxmnist import options
from flaxmnist.errors import UserError, did_you_mean
from flaxmnist.extensions import ExtensionPoint
from flaxmnist.options import Option, declared, option
from flaxmnist.signatures import REQUIRED

# Callables that an error names.
MAX_NAMES = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """A group of options, checked and converted to canonical form when it is made.

    Raises:
      UserError: a value is not of its option's type.
    """

    group: ClassVar[str]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Returns the group with these values.

        An option whose type is an `ExtensionPoint` names a callable, whose parameters
        are options of the group as well: the class of the group is a subclass of `cls`
        with these as further fields.

        Raises:
          UserError: a value is not of its option's type, an option is unknown, or one
            that the callable requires is missing.
        """
        made = cls.class_for(values)
        known = declared(made)
        for key in values:
            if key not in known:
                raise _unknown(cls, key, values)
        return made(**values)

    @classmethod
    def class_for(cls, values: Mapping[str, Any]) -> type[Self]:
        """Returns the class of the group with these values; see :meth:`of`."""
        points = points_of(cls)
        named = {name: values.get(name, declared(cls)[name].default) for name in points}
        named = options.check(cls.group, named, points)
        callables = (
            (key, one, points[key].callable(one)) for key, one in named.items()
        )
        return cast(type[Self], _with_options(cast(Any, cls), tuple(callables)))

    def __post_init__(self) -> None:
        cls = type(self)
        for name, one in declared(cls).items():
            if getattr(self, name) is REQUIRED:
                raise UserError(
                    f"{self.group}.{name} is missing; expected {one.type.expected}. "
                    f"Set --config.{self.group}.{name}=VALUE"
                )
        options.canonicalize(self.group, self)
        base = next(one for one in cls.__mro__ if "group" in vars(one))
        if cast(type[Group], base).class_for(vars(self)) is not cls:
            raise UserError(
                f"{self.group}: {', '.join(points_of(cls))} cannot be replaced alone, "
                "because other options depend on it; use config.override"
            )


def points_of(cls: type[Group]) -> dict[str, ExtensionPoint]:
    """Returns the types of the options that name callables, by option."""
    types = {name: one.type for name, one in declared(cls).items()}
    return {key: one for key, one in types.items() if isinstance(one, ExtensionPoint)}


def _unknown(cls: type[Group], key: str, values: Mapping[str, Any]) -> UserError:
    """Returns the error for an option that the callables of a group do not have."""
    for name, point in points_of(cls).items():
        if users := point.users(key):
            given = values.get(name, declared(cls)[name].default)
            users = sorted(users, key=lambda one: one not in point.listed)[:MAX_NAMES]
            return UserError(
                f"{cls.group}.{key} has no effect with {cls.group}.{name}={given!r}; "
                f"expected {cls.group}.{name} to be {' or '.join(map(repr, users))}"
            )
    known = declared(cls.class_for(values))
    return UserError(f"unknown option '{cls.group}.{key}'{did_you_mean(key, known)}")


@functools.cache
def _with_options(
    cls: type[Group], callables: tuple[tuple[str, str, Any], ...]
) -> type[Group]:
    """Returns `cls` with the options that callables bring.

    Args:
      cls: the class that declares the options of every callable.
      callables: option, canonical name and object of each callable. A file that is
        executed again defines another object.
    """
    found: dict[str, Option] = {}
    for key, name, _ in callables:
        point, known = points_of(cls)[key], declared(cls)
        own = point.options(name)
        if both := found.keys() & own.keys():
            raise UserError(
                f"{cls.group}.{key}={name!r} and another callable of this group both "
                f"have the option {min(both)!r}; rename one"
            )
        # Shipped callables may have another default of an option of the group.
        taken = {"group", *(() if name in point.shipped else known)}
        if reserved := [one for one in own if one in taken or hasattr(Group, one)]:
            raise UserError(
                f"{cls.group}.{key}={name!r} has the parameter {reserved[0]!r}, which "
                "cannot be an option; rename it"
            )
        # A run that may name another callable may change its options, too.
        mutable = known[key].mutable
        found |= {
            each: dataclasses.replace(one, mutable=mutable) for each, one in own.items()
        }
    if not found:
        return cls
    fields = [
        (key, Any, option(one.default, one.type, one.help, mutable=one.mutable))
        for key, one in found.items()
    ]
    return dataclasses.make_dataclass(
        cls.__name__, fields, bases=(cls,), frozen=True, kw_only=True
    )
