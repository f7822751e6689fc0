"""The report of a saved run, or of a population."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from flaxmnist.errors import UserError
from flaxmnist.inference.evaluation import evaluation
from flaxmnist.paths import path_of
from flaxmnist.report.results import PopulationSummary
from flaxmnist.rundir import integrity, population
from flaxmnist.rundir.history import History
from flaxmnist.runtime.console import Console
from flaxmnist.training.summary import summarize

if TYPE_CHECKING:
    from flaxmnist.inference.saved_run import SavedRun


def report_run(run: "SavedRun", compare: Iterable[str | os.PathLike[str]]) -> Path:
    """Writes the report of a run again; see :meth:`SavedRun.report`."""
    # Matplotlib takes long to import.
    from flaxmnist.report.html import write_report
    from flaxmnist.training.results import collect

    # Each run once, and this one not beside itself.
    if isinstance(compare, str | os.PathLike):
        compare = [compare]
    paths = [path_of(path, "compare") for path in compare]
    others = {os.path.realpath(path): path for path in paths}
    others.pop(os.path.realpath(run.workdir), None)
    integrity.check_links(run.workdir)
    if run.members:
        return _report_population(run)
    histories = [History.read(path) for path in others.values()]
    evaluated, console = evaluation(run), Console()
    summary = run.summary
    if summary is None or summary.step != run.last_step:
        summary = summarize(evaluated, run.state, run.last_step, run.step, console)
    results = collect(evaluated, run.state, History.read(run.workdir, summary))
    try:
        path = write_report(results, run.workdir, histories)
    except OSError as error:
        why = f"{run.workdir} cannot be written ({error.strerror})"
        raise UserError(why) from None
    console.line(str(path))
    return path


def _report_population(run: "SavedRun") -> Path:
    from flaxmnist.report.population import EnsembleFigures, write_population

    members = population.saved_members(run.workdir) or ()
    histories = {one.name: History.read(run.workdir / one.name) for one in members}
    summary = PopulationSummary.of(
        (one, histories[one.name].summary) for one in members
    )
    together = EnsembleFigures(
        run.model_name, run.evaluate("validation"), run.evaluate("test")
    )
    try:
        path = write_population(run.workdir, summary, histories, together)
    except OSError as error:
        why = f"{run.workdir} cannot be written ({error.strerror})"
        raise UserError(why) from None
    Console().line(str(path))
    return path
