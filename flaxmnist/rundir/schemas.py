"""Schemas of the JSON files in a run directory."""

import dataclasses
from typing import Any, TypeVar, cast

from flaxmnist.errors import UserError, shown
from flaxmnist.options import MAX_STEPS, OptionType, whole

_T = TypeVar("_T")
# The values that a JSON file may contain: a type, or a schema for each name.
Schema = OptionType | dict[str, "Schema"]


def conform(value: Any, schema: Schema) -> Any:
    """Returns `value` in the canonical form of `schema`.

    A missing name counts as None; unknown names are kept.

    Raises:
      ValueError: `value` does not match the schema.
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


def by_name(type: OptionType) -> OptionType:
    """An object with any names and values of one type."""

    def convert(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise TypeError
        return {name: type.convert(item) for name, item in value.items()}

    return OptionType(f"an object of values, each {type.expected}", convert)


def object_of(schema: Schema) -> OptionType:
    """An object of that schema."""
    return OptionType("an object", lambda value: conform(value, schema))


def build(cls: type[_T], values: dict[str, Any]) -> _T:
    """Builds a dataclass; a missing value is its default, or None if it has none."""
    fields = dataclasses.fields(cast(Any, cls))
    given = {field.name: values.get(field.name) for field in fields}
    optional = {
        field.name for field in fields if field.default is not field.default_factory
    }
    return cls(
        **{
            name: value
            for name, value in given.items()
            if value is not None or name not in optional
        }
    )


def _share(value: Any) -> float:
    if isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError
    return float(value)


def _any_number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    return float(value)


number = OptionType("a number", _any_number)
OBJECT = OptionType("an object", lambda value: {**value})
share = OptionType("a number from 0 to 1", _share)
COUNT = whole(0, below=2**63)
STEP = whole(0, below=MAX_STEPS)
