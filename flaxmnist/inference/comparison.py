"""The comparison of saved runs."""

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flaxmnist import config as configs
from flaxmnist.data import Dataset
from flaxmnist.errors import UserError
from flaxmnist.inference.evaluation import evaluation
from flaxmnist.inference.report import written
from flaxmnist.inference.saved_run import SavedRun, open_run
from flaxmnist.report.charts import Log
from flaxmnist.report.comparison import Group, Unfinished, group
from flaxmnist.rundir import folder as workdirs
from flaxmnist.rundir import integrity, population
from flaxmnist.rundir.history import History, read_records
from flaxmnist.runtime.console import Console
from flaxmnist.training.evaluate import predict

Overrides = Mapping[str, Any] | Iterable[tuple[str, Any]]


def compare_runs(
    paths: Sequence[Path],
    output: Path,
    overrides: Overrides = (),
    data: Dataset | None = None,
) -> Path:
    """Writes a comparison of runs, and of the members of populations, as one page.

    Args:
      paths: the run directories; files among them are skipped.
      output: the page.
      overrides: changes to the configurations, such as ``{"data.dir": "/new/place"}``.
      data: that the runs were trained on, if a program gave them.

    Returns:
      `output`.

    Raises:
      UserError: a directory does not exist, no run is finished, no run accepts the
        overrides, or the page cannot be written.
    """
    # Matplotlib takes long to import.
    from flaxmnist.report.comparison_page import write_comparison

    if output.name == "report.html" and (output.parent / "config.json").exists():
        raise UserError(
            f"--output={output} is the report of a run; expected another name"
        )
    console = Console()
    runs = list(_read(paths))
    finished = [one for one in runs if isinstance(one, History)]
    for one in runs:
        if isinstance(one, Unfinished):
            console.line(f"{one.name}: {one.status}")
    if not finished:
        raise UserError(
            f"{', '.join(map(str, paths))}: no finished run; expected directories of "
            "finished runs"
        )
    overrides = dict(overrides)
    _check(overrides, finished)
    open_one = functools.partial(open_run, overrides=overrides, data=data)
    correct = _correct([*group(finished).values()], open_one, console)
    with written(output):
        path = write_comparison(output, runs, correct)
    console.line(str(path))
    return path


def _check(overrides: Overrides, finished: Sequence[History]) -> None:
    """Raises UserError if no run accepts the overrides: only some runs are opened."""
    errors = []
    for run in finished:
        try:
            configs.override(configs.from_dict(run.summary.config), overrides)
        except UserError as error:
            errors.append(error)
    if len(errors) == len(finished):
        raise errors[0]


def _read(paths: Iterable[Path]) -> Iterator[History | Unfinished]:
    """Yields the runs in directories, and the members of populations, once each.

    Raises:
      UserError: a directory does not exist.
    """
    seen = set()
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist; expected a run directory")
        if path.is_file():  # As `runs/*` names it.
            continue
        try:
            members = population.saved_members(path) or ()
        except UserError as error:
            yield Unfinished(str(path), str(error))
            continue
        for place in [path / one.name for one in members] or [path]:
            if (real := os.path.realpath(place)) not in seen:
                seen.add(real)
                yield _read_run(place)


def _read_run(workdir: Path) -> History | Unfinished:
    try:
        integrity.check_links(workdir)
        config = workdirs.saved_config(workdir, alone=True)
        if workdirs.is_finished(workdir):
            return History.read(workdir)
        if config is None:
            return Unfinished(str(workdir), "contains no run")
        steps = workdirs.saved_steps(workdir)
        status = f"unfinished, step {steps[-1] if steps else 0:,}"
        records = read_records(workdir)
        log = Log(records, _epoch_size(records, config.batch_size))
        return Unfinished(str(workdir), status, log)
    except UserError as error:
        return Unfinished(str(workdir), str(error))


def _epoch_size(records: Sequence[Mapping[str, Any]], batch_size: int) -> int:
    """Returns the number of examples in an epoch, of a run without a summary."""
    for record in records:
        if record.get("epoch"):
            return round(batch_size * record["step"] / record["epoch"])
    return 1


def _correct(
    groups: Sequence[Group], open_one: Callable[[str], SavedRun], console: Console
) -> dict[str, np.ndarray]:
    """Returns whether single runs classify each test image correctly, by name.

    Those with the test images of the first group are evaluated, if that is a single
    run, too.
    """
    first = groups[0]
    single = [
        one.runs[0].name
        for one in groups
        if len(one.by_seed) == 1 and one.test_data == first.test_data is not None
    ]
    found: dict[str, np.ndarray] = {}
    if len(first.by_seed) > 1 or len(single) < 2:
        return found
    evaluated = None
    for name in single:
        try:
            run = open_one(name)
            # The data are the same for every run.
            evaluated = evaluated or evaluation(run, ["test"])
        except UserError as error:
            console.warn(f"{name} is compared without its predictions: {error}")
            continue
        test, replicated = evaluated.eval_feeds["test"], evaluated.replicated
        outputs = predict(run.state, test, replicated)
        found[name] = outputs["classes"] == outputs["labels"]
    return found
