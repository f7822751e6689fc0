"""The report of a saved run, or of a population."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flaxmnist.errors import UserError
from flaxmnist.inference.evaluation import evaluation
from flaxmnist.paths import path_of
from flaxmnist.report.comparison import Unfinished, group
from flaxmnist.report.results import PopulationSummary
from flaxmnist.rundir import folder as workdirs
from flaxmnist.rundir import integrity, population
from flaxmnist.rundir.history import History
from flaxmnist.runtime.console import Console
from flaxmnist.training.evaluate import predict
from flaxmnist.training.summary import summarize

if TYPE_CHECKING:
    from flaxmnist.inference.saved_run import SavedRun


def report_run(run: "SavedRun", compare: Iterable[str | os.PathLike[str]]) -> Path:
    """Writes the report of a run again; see :meth:`SavedRun.report`."""
    if isinstance(compare, str | os.PathLike):
        compare = [compare]
    paths = [path_of(path, "compare") for path in compare]
    integrity.check_links(run.workdir)
    others = list(_read(run, paths))
    write = _report_population if run.members else _report_run
    try:
        path = write(run, others)
    except OSError as error:
        why = f"{run.workdir} cannot be written ({error.strerror})"
        raise UserError(why) from None
    Console().line(str(path))
    return path


def _report_run(run: "SavedRun", others: list[History | Unfinished]) -> Path:
    # Matplotlib takes long to import.
    from flaxmnist.report.html import write_report
    from flaxmnist.training.results import collect

    evaluated, summary = evaluation(run), run.summary
    if summary is None or summary.step != run.last_step:
        console = Console()
        summary = summarize(evaluated, run.state, run.last_step, run.step, console)
    history = History.read(run.workdir, summary)
    results = collect(evaluated, run.state, history)
    return write_report(results, run.workdir, others, _correct(run, history, others))


def _report_population(run: "SavedRun", others: list[History | Unfinished]) -> Path:
    from flaxmnist.report.population import EnsembleFigures, write_population

    members = population.saved_members(run.workdir) or ()
    histories = {one.name: History.read(run.workdir / one.name) for one in members}
    summary = PopulationSummary.of(
        (one, histories[one.name].summary) for one in members
    )
    together = EnsembleFigures(
        run.model_name, run.evaluate("validation"), run.evaluate("test")
    )
    return write_population(run.workdir, summary, histories, together, others)


def _read(run: "SavedRun", paths: list[Path]) -> Iterator[History | Unfinished]:
    """Yields other runs, and the members of other populations, once each.

    Raises:
      UserError: a directory contains no run.
    """
    seen = {os.path.realpath(one.workdir) for one in (run, *run.members)}
    for path in paths:
        members = population.saved_members(path)
        inside = [path / one.name for one in members or ()]
        for place in inside or [path]:
            if (real := os.path.realpath(place)) in seen:
                continue
            seen.add(real)
            has_begun = bool(inside) or (place / "config.json").is_file()
            if has_begun and not (place / "summary.json").exists():
                steps = workdirs.saved_steps(place)
                yield Unfinished(str(place), steps[-1] if steps else 0)
            else:
                yield History.read(place)


def _correct(
    run: "SavedRun", history: History, others: list[History | Unfinished]
) -> dict[str, np.ndarray]:
    """Returns which test images single runs with the same test split get right."""
    from flaxmnist.inference.saved_run import open_run

    finished = [one for one in others if isinstance(one, History)]
    own, *groups = group([history, *finished]).values()
    found: dict[str, np.ndarray] = {}
    evaluated = None
    for one in groups if len(own.by_seed) == 1 else ():
        if len(one.by_seed) == 1 and own.test_data == one.test_data is not None:
            other = open_run(one.runs[0].name)
            # The data are the same for every run.
            evaluated = evaluated or evaluation(run, ["test"])
            test, replicated = evaluated.eval_feeds["test"], evaluated.replicated
            outputs = predict(other.state, test, replicated)
            found[one.runs[0].name] = outputs["classes"] == outputs["labels"]
    return found
