"""The list of all options, for ``--help`` and as a page of Markdown."""

import dataclasses
import itertools
import textwrap
from collections.abc import Iterator

from flaxmnist.config.schema import declarations
from flaxmnist.options import Option

_PAGE = """\
# Options

`--config.NAME=VALUE` on the command line and `make_config` in a configuration file set
these options. A run that resumes may change those marked "yes"; with `--allow_change`,
also `batch_size`, `grad_accumulation` and the groups optimizer, loss and augment. All
others must keep their values.

Options that name a part, such as `model.name`, `optimizer.name` and `data.source`, also
accept your own class or function, as `"package.module:name"` or `"file.py:name"`. Its
parameters are further options: see [Extending](../extending.md).
"""


@dataclasses.dataclass(frozen=True)
class Entry:
    """An option as its users read of it.

    Attributes:
      group: "run", or the part of `name` before the dot.
      name: its full name, such as ``"optimizer.learning_rate"``.
      default: its default; if callables differ in it, that of each.
      expected: the values that it accepts.
      help: its meaning, in one sentence.
      mutable: whether a run that resumes may change it.
    """

    group: str
    name: str
    default: str
    expected: str
    help: str
    mutable: bool


def entries() -> Iterator[Entry]:
    """Yields every option, group by group."""
    for name, by_callable in declarations(listed=True).items():
        group, dot, _ = name.partition(".")
        one = by_callable.get("") or [*by_callable.values()][-1]
        yield Entry(
            group if dot else "run",
            name,
            _default(by_callable),
            one.type.expected,
            one.help,
            one.mutable,
        )


def _default(by_callable: dict[str, Option]) -> str:
    """Returns a default such as ``"adam"``, or ``"mlp: 0.0; cnn: 0.4"`` by model."""
    if "" in by_callable:
        return str(by_callable[""].default)
    users: dict[str, list[str]] = {}
    for name, one in by_callable.items():
        users.setdefault(str(one.default), []).append(name)
    return "; ".join(f"{', '.join(names)}: {value}" for value, names in users.items())


def _groups() -> Iterator[tuple[str, list[Entry]]]:
    for group, found in itertools.groupby(entries(), lambda entry: entry.group):
        yield group, list(found)


def help_text() -> str:
    """Returns the options by group, as ``--help`` prints them."""
    lines = [
        "options of --config (*: may change when a run resumes):",
        "(options such as model.name also accept your own module:name or file.py:name)",
    ]
    for group, found in _groups():
        lines += ["", f"{group}:"]
        for entry in found:
            star = "*" if entry.mutable else " "
            lines.append(f"{star} --config.{entry.name}  (default: {entry.default})")
            text = f"{entry.help} Expected: {entry.expected}."
            indent = " " * 6
            lines += textwrap.wrap(
                text, 80, initial_indent=indent, subsequent_indent=indent
            )
    return "\n".join(lines)


def markdown() -> str:
    """Returns the page of all options."""
    lines = [_PAGE]
    for group, found in _groups():
        lines += [
            f"## {group}",
            "",
            "| option | default | expected | may change | meaning |",
            "|---|---|---|---|---|",
        ]
        for entry in found:
            mutable = "yes" if entry.mutable else "no"
            lines.append(
                f"| `{entry.name}` | `{entry.default}` | {entry.expected} | {mutable} "
                f"| {entry.help} |"
            )
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"
