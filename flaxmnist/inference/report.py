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
    if isinstance(compare, str | os.PathLike):
        compare = [compare]
    integrity.check_links(run.workdir)
    if others := [path_of(path, "compare") for path in compare]:
        from flaxmnist.inference.comparison import compare_runs

        return compare_runs(
            [run.workdir, *others],
            run.workdir / "comparison.html",
            {"data.source": run.config.data.source, "data.dir": run.config.data.dir},
            run.given_data,
        )
    write = _report_population if run.members else _report_run
    try:
        path = write(run)
    except OSError as error:
        why = f"{run.workdir} cannot be written ({error.strerror})"
        raise UserError(why) from None
    Console().line(str(path))
    return path


def _report_run(run: "SavedRun") -> Path:
    # Matplotlib takes long to import.
    from flaxmnist.report.html import write_report
    from flaxmnist.training.results import collect

    evaluated, summary = evaluation(run), run.summary
    if summary is None or summary.step != run.last_step:
        console = Console()
        summary = summarize(evaluated, run.state, run.last_step, run.step, console)
    history = History.read(run.workdir, summary)
    return write_report(collect(evaluated, run.state, history), run.workdir)


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
    return write_population(run.workdir, summary, histories, together)
