"""The page of a population, ``report.html``, and its figure in ``plots/``."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from flaxmnist.errors import printable
from flaxmnist.report import plots
from flaxmnist.report.charts import charts
from flaxmnist.report.comparison import Group
from flaxmnist.report.page import data_url, template
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
) -> Path:
    """Writes ``report.html`` and ``plots/curves.png`` of a population.

    Args:
      workdir: the directory of the population.
      summary: the results.
      histories: what the members logged, by name.
      ensemble: figures of the members together, if evaluated.

    Returns:
      the path of the page.
    """
    settings = {
        one.name or workdir.name: Group(tuple(histories[name] for name in one.members))
        for one in summary.settings
    }
    records = {name: one.records for name, one in settings.items()}
    png = plots.png(plots.curves(records))
    make_directory(workdir / "plots")
    write_file(workdir / "plots" / "curves.png", png)
    first = summary.members[summary.ranked[0]]
    page = template("population.html.j2").render(
        name=printable(workdir.resolve().name),
        summary=summary,
        first=first,
        ensemble=ensemble,
        spread_cells=spread_cells,
        charts=charts({name: one.logs for name, one in settings.items()}),
        curves=data_url(png),
        config=json.dumps(first.config, indent=2),
    )
    path = workdir / "report.html"
    write_file(path, page)
    return path
