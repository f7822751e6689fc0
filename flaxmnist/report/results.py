"""The results of a population: its tables and its ``summary.json``."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from flaxmnist.report.statistics import Spread
from flaxmnist.rundir.population import Member
from flaxmnist.rundir.results import Summary


@dataclasses.dataclass(frozen=True)
class Setting:
    """Members that differ in their seed only.

    Attributes:
      name: the options of the setting with their values; "" if only the seed varies.
      members: names of the members.
      validation: accuracy on validation.
      test: accuracy on test.
    """

    name: str
    members: tuple[str, ...]
    validation: Spread
    test: Spread


@dataclasses.dataclass(frozen=True)
class PopulationSummary:
    """The result of a population: the content of its ``summary.json``.

    Attributes:
      members: a summary by the name of the member, in the order of training.
      settings: a setting for each combination of swept options; the highest mean
        accuracy on validation first.
      failed: names of the members whose loss is not finite; they are not in `members`.
    """

    members: dict[str, Summary]
    settings: tuple[Setting, ...]
    failed: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, results: Iterable[tuple[Member, Summary]], failed: Iterable[str] = ()
    ) -> "PopulationSummary":
        """Returns the result of members that are trained, and of those that failed."""
        groups: dict[str, list[tuple[Member, Summary]]] = {}
        for member, summary in (results := list(results)):
            groups.setdefault(member.setting, []).append((member, summary))
        settings = [
            Setting(
                name,
                tuple(member.name for member, _ in group),
                *(
                    Spread.of([getattr(one, split).accuracy for _, one in group])
                    for split in ("validation", "test")
                ),
            )
            for name, group in groups.items()
        ]
        ranked = sorted(settings, key=lambda one: one.validation.mean, reverse=True)
        found = {member.name: one for member, one in results}
        return cls(found, tuple(ranked), tuple(failed))

    def to_json(self) -> dict[str, Any]:
        """Returns an object that `json.dumps` accepts."""
        members = {
            name: {
                "step": one.evaluated_step,
                **{
                    split: dataclasses.asdict(getattr(one, split))
                    for split in ("train", "validation", "test")
                },
            }
            for name, one in self.members.items()
        }
        settings = [dataclasses.asdict(one) for one in self.settings]
        failed = list(self.failed)
        return {"members": members, "settings": settings, "failed": failed}

    @property
    def ranked(self) -> list[str]:
        """Names of the members: by setting, the best on validation first."""
        return [name for setting in self.settings for name in setting.members]

    def tables(self) -> str:
        """Returns the results of the members, and of the settings, as text."""
        members = [
            (name, f"{one.evaluated_step}", *map(_percent, _accuracies(one)))
            for name in self.ranked
            for one in (self.members[name],)
        ]
        text = _aligned([("member", "step", "validation", "test"), *members])
        if all(one.validation.count == 1 for one in self.settings):
            return text
        settings = [
            (
                setting.name or "all",
                f"{setting.validation.count}",
                *spread_cells(setting.validation),
                *spread_cells(setting.test),
            )
            for setting in self.settings
        ]
        head = ("setting", "seeds", "validation", "95 %", "test", "95 %")
        return f"{text}\n\n{_aligned([head, *settings])}"


def _accuracies(summary: Summary) -> tuple[float, float]:
    return summary.validation.accuracy, summary.test.accuracy


def _percent(share: float) -> str:
    return f"{share:.2%}"


def spread_cells(found: Spread) -> tuple[str, str]:
    """Returns mean ± standard deviation, and the confidence interval, as text."""
    if found.sd is None or found.low is None:
        return f"{found.mean:.2%}", "–"
    return (
        f"{found.mean:.2%} ± {found.sd:.2%}",
        f"{found.low:.2%} to {found.high:.2%}",
    )


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Returns a table as text; all columns but the first are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0])]
            + [
                cell.rjust(width)
                for cell, width in zip(row[1:], widths[1:], strict=True)
            ]
        )
        for row in rows
    )
