"""Training of a population: its members in turn, with one compilation."""

import dataclasses
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

import jax

from flaxmnist import config as configs
from flaxmnist.core.sharding import named_leaves
from flaxmnist.data import Dataset
from flaxmnist.errors import StoppedError, UserError, dtype_and_shape
from flaxmnist.report.results import PopulationSummary
from flaxmnist.rundir import folder as workdirs
from flaxmnist.rundir import population
from flaxmnist.rundir.history import History
from flaxmnist.rundir.population import Member
from flaxmnist.rundir.results import Summary
from flaxmnist.runtime.console import Console
from flaxmnist.runtime.interrupts import stop_at_interrupt
from flaxmnist.training.experiment import Experiment
from flaxmnist.training.loop import train_and_evaluate
from flaxmnist.training.resume import abstract_tree, begin


def train_members(
    config: configs.Config,
    workdir: Path,
    members: Sequence[Member] = (),
    data: Dataset | None = None,
    *,
    console: Console | None = None,
    started: float | None = None,
) -> PopulationSummary:
    """Trains the members of a population in turn, and writes tables and report.

    Finished members are not trained again, and an unfinished one resumes.

    Args:
      config: that the members share.
      workdir: the directory of the population.
      members: to train; if empty, those that the directory lists.
      data: see :func:`flaxmnist.training.loop.train_and_evaluate`.
      console: where to print; the standard output if None.
      started: see `train_and_evaluate`.

    Raises:
      UserError: as `train_and_evaluate`; or the directory contains an ordinary run or
        another population, or a swept option changes the shapes of arrays.
      StoppedError: Ctrl-C or SIGTERM stopped it, after the present member was saved.
    """
    console = console or Console()
    if jax.process_count() > 1:
        raise UserError(
            "a population is trained by one process; remove --coordinator, or train "
            "the members one by one"
        )
    with workdirs.locked(workdir) as rundir:
        runs, dataset = _start(rundir, config, members, data)
        if dataset.warning:
            console.warn(dataset.warning)
            dataset = dataclasses.replace(dataset, warning=None)
        with stop_at_interrupt(_interrupted(workdir)):
            results = []
            for number, (one, run) in enumerate(runs.items(), 1):
                console.line(f"\nmember {number} of {len(runs)}: {one.name}")
                result = _train(run, workdir / one.name, dataset, console, started)
                results.append((one, result))
                started = None
            summary = PopulationSummary.of(results)
            rundir.remove("report.html")  # It is of an earlier summary.
            rundir.write("summary.json", json.dumps(summary.to_json(), indent=2) + "\n")
            console.line(f"\n{summary.tables()}")
            if config.report:
                rundir.check()
                _report(workdir, summary)
    report = "report.html, " if config.report else ""
    use = ""
    if population.has_one_model(runs):
        use = "; eval, predict and export use the members as an ensemble"
    console.line(
        f"\n{workdir}: {report}summary.json, and a run directory per member{use}"
    )
    return summary


def _start(
    rundir: workdirs.Lock,
    config: configs.Config,
    members: Sequence[Member],
    data: Dataset | None,
) -> tuple[dict[Member, configs.Config], Dataset]:
    """Writes the list of members; returns their configurations, and the data."""
    workdir = rundir.workdir
    members = population.merged(workdir, config, members)
    runs = {one: configs.override(config, one.options.items()) for one in members}
    for run in runs.values():
        workdirs.permit(run)
    first = runs[members[0]]
    if (saved := workdirs.saved_config(workdir)) is not None:
        workdirs.check_same(saved, first)
    dataset = _check(runs, data)
    rundir.prepare(())
    rundir.write(population.FILE, population.to_json(members))
    rundir.write_config(first)
    return runs, dataset


def _train(
    config: configs.Config,
    workdir: Path,
    dataset: Dataset,
    console: Console,
    started: float | None,
) -> Summary:
    """Trains a member, unless it is finished; returns its summary."""
    if (summary := _finished(workdir, config, dataset)) is not None:
        console.line(f"{workdir} is finished at step {summary.step}")
        return summary
    try:
        return train_and_evaluate(
            config, workdir, data=dataset, console=console, started=started
        )
    except StoppedError as error:
        raise StoppedError(
            error.number, f"{error}\n{_interrupted(workdir.parent)}", error.alone
        ) from None


def _finished(
    workdir: Path, config: configs.Config, dataset: Dataset
) -> Summary | None:
    """Returns the summary of a member that is finished with this configuration.

    Returns None, too, if its data or code have changed: resuming the member reports it.
    """
    summary, steps = workdirs.saved_summary(workdir), workdirs.saved_steps(workdir)
    if summary is None or steps[-1:] != [summary.step]:
        return None
    has_report = (workdir / "report.html").exists() or not config.report
    former = summary.dataset
    is_same = (
        configs.from_dict(summary.config) == config
        and summary.sources == configs.sources(config)
        and former.fingerprints == dataset.fingerprints
        and former.class_names == dataset.class_names
    )
    return summary if has_report and is_same else None


def _interrupted(workdir: Path) -> str:
    place = shlex.quote(str(workdir))
    return (
        f"flaxmnist train --workdir {place} continues with this member and the others"
    )


def _report(workdir: Path, summary: PopulationSummary) -> None:
    # Matplotlib takes long to import.
    from flaxmnist.report.population import write_population

    histories = {name: History.read(workdir / name) for name in summary.members}
    write_population(workdir, summary, histories)


def _check(runs: dict[Member, configs.Config], data: Dataset | None) -> Dataset:
    """Returns the data, after a member of each setting was built; writes nothing.

    Raises:
      UserError: the options do not fit together, or a setting has other arrays.
    """
    of_setting = {one.setting: config for one, config in reversed(runs.items())}
    dataset, first = data, None
    for setting, config in reversed(of_setting.items()):
        experiment = Experiment.build(config, dataset)
        dataset = experiment.dataset
        arrays = {
            name: dtype_and_shape(leaf)
            for name, leaf in named_leaves(abstract_tree(experiment))
        }
        if first is None:
            first = arrays
            begin(experiment)  # This checks the initial parameters.
        elif first != arrays:
            changed = dict(first.items() ^ arrays.items())
            name = min(changed)
            found, wanted = (one.get(name, "missing") for one in (arrays, first))
            raise UserError(
                f"sweep: {setting} changes the shapes of arrays: {name} is {found}; "
                f"expected {wanted}, as in the first setting. Train a population for "
                "each value"
            )
    assert dataset is not None
    return dataset
