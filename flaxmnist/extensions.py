"""The callables that a configuration names: shipped ones, and the user's own.

One mechanism serves models, optimizers, schedules, losses, data sources, augmentations
and metrics. An option whose type is an :class:`ExtensionPoint` accepts

- the name of a shipped callable, such as ``"cnn"``;
- a specification, ``"package.module:name"`` or ``"file.py:name"``, of any other;
- the callable itself, which is replaced by its specification.

The parameters of the callable are options of the same group (see
:mod:`flaxmnist.signatures`). To make a new extension point, declare an option with a
type such as ``ExtensionPoint(LOSSES, filled=("logits", "labels"))`` in a group of
:mod:`flaxmnist.config.groups`, and call :meth:`ExtensionPoint.build` or
:meth:`ExtensionPoint.bind` where its value is needed.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

from flaxmnist.errors import UserError, did_you_mean, explained
from flaxmnist.options import Option, OptionType
from flaxmnist.signatures import options_of, parameters
from flaxmnist.user_code import load, spec_of


class ExtensionPoint(OptionType):
    """The callables that an option accepts: shipped ones by name, and the user's own.

    Attributes:
      shipped: callables by name; looked up at each use, so it may change.
      filled: parameters that the library passes, which are no options.
      declares: whether the parameters of shipped callables are options, too.
      listed: names of the shipped callables whose options the reference lists.
    """

    def __init__(
        self,
        shipped: Mapping[str, Any],
        filled: Collection[str] = (),
        *,
        declares: bool = True,
        expected: str = "",
        listed: Collection[str] | None = None,
    ):
        super().__init__(expected or f"one of {', '.join(shipped)}", self._canonical)
        self.shipped, self.filled, self.declares = shipped, filled, declares
        self.listed = shipped if listed is None else listed

    def _canonical(self, value: Any) -> str:
        """Returns a shipped name, or the specification of a usable callable."""
        if isinstance(value, str) and value in self.shipped:
            return value
        if isinstance(value, str) and ":" in value:
            spec = load(value).spec
        elif callable(value):
            for name, one in self.shipped.items():
                if one is value:
                    return name
            spec = spec_of(value)
        else:
            hint = did_you_mean(value, self.shipped)
            if isinstance(value, str) and "." in value:
                hint = f'; write your own as "{":".join(value.rsplit(".", 1))}"'
            raise UserError(f" is unknown{hint}")
        self.options(spec)  # Raises if its signature cannot be used.
        return spec

    def specs(self, value: Any) -> list[str]:
        """Returns the specifications in a value of a JSON file; imports nothing."""
        is_spec = isinstance(value, str) and value not in self.shipped and ":" in value
        return [value] if is_spec else []

    def callable(self, name: str) -> Callable[..., Any]:
        """Returns the callable of a canonical name."""
        found: Callable[..., Any] = (
            self.shipped[name] if name in self.shipped else load(name).callable
        )
        return found

    def options(self, name: str) -> dict[str, Option]:
        """Returns the options that the callable brings, by name.

        Raises:
          UserError: a parameter without a default has a type that a configuration
            cannot hold; completes the sentence ``"name=value…"``.
        """
        if name in self.shipped and not self.declares:
            return {}
        # "name" is the option that names the callable.
        return options_of(self.callable(name), {*self.filled, "name"})

    def users(self, option: str) -> list[str]:
        """Returns the names of the shipped callables that have an option."""
        return [name for name in self.shipped if option in self.options(name)]

    def build(self, name: str, given: Mapping[str, Any], /, **filled: Any) -> Any:
        """Calls the callable, which makes something.

        Args:
          name: in canonical form.
          given: options by name; those of another callable are left out.
          **filled: arguments from the library, passed to parameters of these names.

        Raises:
          UserError: the user's callable raised an exception.
        """
        made, chosen = self.callable(name), self._chosen(name, given, filled)
        if name in self.shipped:
            return made(**chosen)
        with explained(f"{name}: "):
            return made(**chosen)

    def bind(
        self, name: str, given: Mapping[str, Any], /, **filled: Any
    ) -> Callable[..., Any]:
        """Returns a function with its options set: a class is called, others bound.

        The arguments are those of :meth:`build`. Equal functions with equal options
        compare equal, so that a compiled program serves both.
        """
        found = self.callable(name)
        if isinstance(found, type):
            made: Callable[..., Any] = self.build(name, given, **filled)
            return made
        chosen = self._chosen(name, given, filled)
        return Bound(found, tuple(sorted(chosen.items()))) if chosen else found

    def _chosen(
        self, name: str, given: Mapping[str, Any], filled: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Returns the arguments that the callable takes; see :meth:`build`."""
        own, taken = self.options(name), parameters(self.callable(name))
        return {key: value for key, value in given.items() if key in own} | {
            key: value for key, value in filled.items() if key in taken
        }


class Several(OptionType):
    """A tuple of what an extension point accepts; a text may have commas between.

    Attributes:
      point: accepts each item.
    """

    def __init__(self, point: ExtensionPoint):
        super().__init__(f"names out of ({', '.join(point.shipped)})", self._canonical)
        self.point = point

    def _canonical(self, value: Any) -> tuple[str, ...]:
        return tuple(dict.fromkeys(map(self.point.convert, self._items(value))))

    def _items(self, value: Any) -> list[Any]:
        items = value.split(",") if isinstance(value, str) else value or ()
        if callable(items):
            items = (items,)
        return [item.strip() if isinstance(item, str) else item for item in items]

    def specs(self, value: Any) -> list[str]:
        """Returns the specifications in a value of a JSON file; imports nothing."""
        with contextlib.suppress(TypeError):  # The value is invalid.
            return [
                spec for item in self._items(value) for spec in self.point.specs(item)
            ]
        return []


@dataclasses.dataclass(frozen=True)
class Bound:
    """A function with keyword arguments, compared by value unlike a `partial`."""

    function: Callable[..., Any]
    options: tuple[tuple[str, Any], ...]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function."""
        return self.function(*args, **dict(self.options), **kwargs)
