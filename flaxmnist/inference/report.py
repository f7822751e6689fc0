"""The report of a saved run, or of a population."""

import contextlib
import os
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from flaxmnist.errors import UserError
from flaxmnist.inference.evaluation import evaluation
from flaxmnist.paths import path_of
from flaxmnist.report.results import PopulationSummary
from flaxmnist.rundir import folder as workdirs
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
            [Path(os.path.relpath(run.workdir)), *others],
            run.workdir / "comparison.html",
            {"data.source": run.config.data.source, "data.dir": run.config.data.dir},
            run.given_data,
        )
    if run.members:
        return report_population(run.workdir, run)
    path = _report_run(run)
    Console().line(str(path))
    return path


def report_population(workdir: Path, ensemble: "SavedRun | None" = None) -> Path:
    """Writes the report of a population again.

    Args:
      workdir: the directory of the population.
      ensemble: its members, opened as one run; None if their models differ, or not
        all are finished.

    Returns:
      the path of ``report.html``.

    Raises:
      UserError: as :meth:`SavedRun.report`, or no member is finished.
    """
    from flaxmnist.report.population import EnsembleFigures, write_population

    integrity.check_links(workdir)
    members = population.saved_members(workdir) or ()
    missing = workdirs.unfinished(workdir, members)
    finished = [one for one in members if one.name not in missing]
    if not finished:
        raise UserError(
            f"{workdir} contains no finished run; `flaxmnist train --workdir "
            f"{shlex.quote(str(workdir))}` trains its members"
        )
    histories = {one.name: History.read(workdir / one.name) for one in finished}
    summary = PopulationSummary.of(
        ((one, histories[one.name].summary) for one in finished), missing
    )
    together = None
    if ensemble is not None:
        figures = [ensemble.evaluate(split) for split in ("validation", "test")]
        together = EnsembleFigures(ensemble.model_name, *figures)
    with written(workdir):
        path = write_population(workdir, summary, histories, together)
    Console().line(str(path))
    return path


@contextlib.contextmanager
def written(path: Path) -> Iterator[None]:
    """Raises UserError if the block cannot write a file, or into a directory."""
    try:
        yield
    except OSError as error:
        why = f"{path} cannot be written ({error.strerror})"
        raise UserError(why) from None


def _report_run(run: "SavedRun") -> Path:
    # Matplotlib takes long to import.
    from flaxmnist.report.html import write_report
    from flaxmnist.training.results import collect

    evaluated, summary = evaluation(run), run.summary
    if summary is None or summary.step != run.last_step:
        console = Console()
        summary = summarize(evaluated, run.state, run.last_step, run.step, console)
    history = History.read(run.workdir, summary)
    results = collect(evaluated, run.state, history)
    with written(run.workdir):
        return write_report(results, run.workdir)
