"""The page of a population, ``report.html``, and its figure in ``plots/``."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from flaxmnist.errors import printable
from flaxmnist.report import plots
from flaxmnist.report.comparison import Group, Unfinished, compare, group
from flaxmnist.report.html import data_url, template
from flaxmnist.report.results import PopulationSummary, spread_cells
from flaxmnist.rundir.history import History
from flaxmnist.rundir.results import Figures
from flaxmnist.runtime.durable import make_directory, write_file


@dataclasses.dataclass(frozen=True)
class EnsembleFigures:
    """Name and figures of the members together."""

    name: str
    validation: Figures
    test: Figures


def write_population(
    workdir: Path,
    summary: PopulationSummary,
    histories: Mapping[str, History],
    ensemble: EnsembleFigures | None = None,
    others: Sequence[History | Unfinished] = (),
) -> Path:
    """Writes ``report.html`` and ``plots/curves.png`` of a population.

    Args:
      workdir: the directory of the population.
      summary: the results.
      histories: what the members logged, by name.
      ensemble: figures of the members together, if evaluated.
      others: runs to compare with the setting that is the best on validation.

    Returns:
      the path of the page.
    """
    settings = {
        one.name or workdir.name: Group(tuple(histories[name] for name in one.members))
        for one in summary.settings
    }
    finished = [one for one in others if isinstance(one, History)]
    groups = settings | group(finished)
    curves = {name: one.records for name, one in groups.items()}
    png = plots.png(plots.curves(curves))
    make_directory(workdir / "plots")
    write_file(workdir / "plots" / "curves.png", png)
    first = summary.members[summary.ranked[0]]
    page = template("population.html.j2").render(
        name=printable(workdir.resolve().name),
        written=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        summary=summary,
        first=first,
        ensemble=ensemble,
        comparison=compare([*groups.values()]) if others else [],
        unfinished=[one for one in others if isinstance(one, Unfinished)],
        spread_cells=spread_cells,
        curves=data_url(png),
        config=json.dumps(first.config, indent=2),
    )
    path = workdir / "report.html"
    write_file(path, page)
    return path
