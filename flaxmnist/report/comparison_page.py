"""The comparison of runs on one page."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np

from flaxmnist.errors import printable
from flaxmnist.report import plots
from flaxmnist.report.charts import charts
from flaxmnist.report.comparison import (
    Unfinished,
    compare,
    differences,
    group,
)
from flaxmnist.report.page import data_url, template
from flaxmnist.rundir.history import History
from flaxmnist.runtime.durable import make_directory, write_file


def write_comparison(
    path: Path,
    runs: Sequence[History | Unfinished],
    correct: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Writes a page that needs no other file.

    Args:
      path: of the page.
      runs: to compare, one or more of them finished.
      correct: see :func:`flaxmnist.report.comparison.compare`.

    Returns:
      the path of the page.
    """
    folder = os.path.commonpath([os.path.dirname(_absolute(one.name)) for one in runs])
    short = {one.name: os.path.relpath(_absolute(one.name), folder) for one in runs}
    links = {short[one.name]: _link(one.name, path) for one in runs}
    runs = [dataclasses.replace(one, name=short[one.name]) for one in runs]
    finished = [one for one in runs if isinstance(one, History)]
    unfinished = [one for one in runs if isinstance(one, Unfinished)]
    groups = [*group(finished).values()]
    rows = compare(groups, {short[name]: r for name, r in (correct or {}).items()})
    logs = {
        **{row.names: row.group.logs for row in rows},
        **{
            f"{one.name} ({one.status})": [one.log]
            for one in unfinished
            if one.log.records
        },
    }
    records = {name: [log.records for log in some] for name, some in logs.items()}
    page = template("comparison.html.j2").render(
        name=f"Comparison of {len(runs)} runs",
        folder=printable(folder),
        rows=rows,
        finished=finished,
        unfinished=unfinished,
        links=links,
        differences=differences(groups),
        charts=charts(logs),
        curves=data_url(plots.png(plots.curves(records))),
    )
    make_directory(path.parent)
    write_file(path, page)
    return path


def _absolute(name: str) -> str:
    return os.path.abspath(name)


def _link(name: str, path: Path) -> str | None:
    """Returns the address of the report of a run on this page; None if it has none."""
    report = os.path.join(_absolute(name), "report.html")
    if not os.path.exists(report):
        return None
    return quote(os.path.relpath(report, path.absolute().parent))
