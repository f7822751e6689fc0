"""The code of a user that a configuration names."""

import dataclasses
from typing import Any

from flaxmnist.config.conversion import as_dict
from flaxmnist.config.schema import GROUPS, Config
from flaxmnist.extensions import ExtensionPoint, Several
from flaxmnist.options import declared
from flaxmnist.user_code import Loaded, load


@dataclasses.dataclass(frozen=True)
class NamedCode:
    """Code of a user that an option names.

    Attributes:
      option: full name of the option, such as ``"model.name"``.
      spec: specification of the callable; see :mod:`flaxmnist.user_code`.
      options: values of the option's group, which the callable may receive.
    """

    option: str
    spec: str
    options: dict[str, Any]


def named_code(values: Any) -> list[NamedCode]:
    """Returns the code that values such as :func:`as_dict` returns name.

    Imports nothing and raises nothing: the values may be from an untrusted file.
    """
    values = values if isinstance(values, dict) else {}
    found = []
    for group, cls in ("", Config), *GROUPS.items():
        part = values.get(group) if group else values
        for name, one in declared(cls).items() if isinstance(part, dict) else ():
            if isinstance(one.type, ExtensionPoint | Several):
                found += [
                    NamedCode(
                        f"{group}.{name}".lstrip("."), spec, part if group else {}
                    )
                    for spec in one.type.specs(part.get(name))
                ]
    return found


def user_code(config: Config) -> list[tuple[NamedCode, Loaded]]:
    """Returns each callable of the user that options name, and its import."""
    return [(one, load(one.spec)) for one in named_code(as_dict(config))]


def sources(config: Config) -> dict[str, str]:
    """Returns the SHA-256 of the source of the user's callables, by specification.

    A callable whose source is not known, or installed, is left out.
    """
    found = {one.spec: loaded.sha256 for one, loaded in user_code(config)}
    return {spec: sha256 for spec, sha256 in found.items() if sha256}
