"""Training of a population: its members in turn, with one compilation."""

import dataclasses
import json
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

from flaxmnist import config as configs
from flaxmnist.core.sharding import named_leaves
from flaxmnist.data import Dataset
from flaxmnist.errors import DivergedError, StoppedError, UserError, dtype_and_shape
from flaxmnist.report.results import PopulationSummary
from flaxmnist.rundir import folder as workdirs
from flaxmnist.rundir import population, trust
from flaxmnist.rundir.history import History
from flaxmnist.rundir.population import Member
from flaxmnist.rundir.results import Summary
from flaxmnist.runtime.console import Console, warned_once
from flaxmnist.runtime.interrupts import stop_at_interrupt
from flaxmnist.training.experiment import Experiment
from flaxmnist.training.finish import errors_as_warnings
from flaxmnist.training.loop import train_and_evaluate
from flaxmnist.training.resume import abstract_tree, begin


def train_members(
    config: configs.Config,
    workdir: Path,
    members: Sequence[Member] = (),
    data: Dataset | None = None,
    *,
    started: float | None = None,
) -> PopulationSummary:
    """Trains the members of a population in turn, and writes tables and report.

    Finished members are not trained again, and an unfinished one resumes. If the loss
    of a member is not finite, the others are trained nevertheless.

    Args:
      config: that the members share.
      workdir: the directory of the population.
      members: to train; if empty, those that the directory lists.
      data: see :func:`flaxmnist.training.loop.train_and_evaluate`.
      started: see `train_and_evaluate`.

    Raises:
      UserError: as `train_and_evaluate`; or the directory contains an ordinary run or
        another population, or a swept option changes the shapes of arrays.
      DivergedError: the loss of a member is not finite; the others are trained.
      StoppedError: Ctrl-C or SIGTERM stopped it, after the present member was saved,
        unless its loss is not finite.
    """
    console = Console()
    if jax.process_count() > 1:
        raise UserError(
            "a population is trained by one process; start one only, or train the "
            "members one by one"
        )
    results: dict[Member, Summary] = {}
    failed: dict[str, str] = {}
    with workdirs.locked(workdir) as rundir, warned_once():
        runs, dataset = _start(rundir, config, members, data)
        if dataset.warning:
            console.warn(dataset.warning)
            dataset = dataclasses.replace(dataset, warning=None)
        with stop_at_interrupt(_interrupted(workdir)):
            for number, (one, run) in enumerate(runs.items(), 1):
                console.line(f"\nmember {number} of {len(runs)}: {one.name}")
                folder = workdir / one.name
                try:
                    results[one] = _train(run, folder, dataset, console, started)
                except DivergedError as error:
                    console.line(f"{one.name} failed: {error.problem}")
                    failed[one.name] = error.problem
                started = None
            summary = _write(rundir, config, results, failed, console)
    if failed:
        raise _diverged(config, failed, len(runs))
    report = "report.html, " if (workdir / "report.html").exists() else ""
    use = ""
    if population.has_one_model(runs):
        use = "; eval, predict and export use the members as an ensemble"
    console.line(
        f"\n{workdir}: {report}summary.json, and a run directory per member{use}"
    )
    return summary


def _write(
    rundir: workdirs.Lock,
    config: configs.Config,
    results: dict[Member, Summary],
    failed: Iterable[str],
    console: Console,
) -> PopulationSummary:
    """Writes and prints the results of a population."""
    summary = PopulationSummary.of(results.items(), failed)
    rundir.remove("report.html")  # It is of an earlier summary.
    rundir.write("summary.json", json.dumps(summary.to_json(), indent=2) + "\n")
    if results:
        console.line(f"\n{summary.tables()}")
    if results and config.report:
        rundir.check()
        with errors_as_warnings(rundir.workdir, console):
            _report(rundir.workdir, summary)
    return summary


def _diverged(
    config: configs.Config, failed: dict[str, str], count: int
) -> DivergedError:
    others = "; the others are finished" if len(failed) < count else ""
    listed = "".join(f"\n  {name}: {problem}" for name, problem in failed.items())
    advice = "Use "
    if config.on_nan == "stop":
        advice = (
            "Add --config.on_nan=rollback to train those again whose training failed. "
            "Or use "
        )
    advice += "another --workdir, with a smaller optimizer.learning_rate or "
    return DivergedError(
        f"{len(failed)} of {count} members failed{others}{listed}",
        f"{advice}optimizer.clip_norm=1",
    )


def _start(
    rundir: workdirs.Lock,
    config: configs.Config,
    members: Sequence[Member],
    data: Dataset | None,
) -> tuple[dict[Member, configs.Config], Dataset]:
    """Writes the list of members; returns their configurations, and the data."""
    workdir = rundir.workdir
    for named in (config, *(population.configuration(config, one) for one in members)):
        workdirs.permit(named)
    saved = workdirs.saved_config(workdir)
    members = population.merged(workdir, members)
    runs = {one: population.configuration(config, one) for one in members}
    for run in runs.values():  # The list in the directory may be of another person.
        trust.check(configs.as_dict(run), workdir)
    if saved is not None and (changed := _changed(saved, config, runs)):
        listed = (
            f"{name}: {before} in the saved population, {after} in this one"
            for name, (before, after) in changed.items()
        )
        raise UserError(
            f"--workdir={workdir} contains a population with a different "
            f"configuration; use another directory, or its options\n{'; '.join(listed)}"
        )
    dataset = _check(runs, data)
    rundir.prepare(())
    rundir.write(population.FILE, population.to_json(members))
    rundir.write_config(config, *runs.values())
    return runs, dataset


def _changed(
    saved: configs.Config, config: configs.Config, runs: dict[Member, configs.Config]
) -> dict[str, tuple[Any, Any]]:
    """Returns the fixed options that the members share, if their values differ.

    The values are those of the saved population and of this one.
    """
    # In version 0.2.0, config.json was the configuration of the first member.
    if not configs.changed_options(saved, next(iter(runs.values()))):
        return {}
    own = {name for one in runs for name in one.options}
    changed = configs.changed_options(saved, config)
    return {name: values for name, values in changed.items() if name not in own}


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
        if summary.sources:  # Code that its user trusts now needs no flag from then on.
            with workdirs.locked(workdir) as rundir:
                rundir.sign(config)
        return summary
    try:
        return train_and_evaluate(
            config, workdir, data=dataset, console=console, started=started
        )
    except StoppedError as error:
        advice = _interrupted(workdir.parent)
        if str(error) == advice:  # The signal came before the member was started.
            raise
        raise StoppedError(error.number, f"{error}\n{advice}", error.alone) from None


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
