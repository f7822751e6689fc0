"""The end of a run: its evaluation, its summary, and its report."""

import contextlib
import dataclasses
import json
import logging
import shlex
from collections.abc import Iterator
from pathlib import Path

from flaxmnist.core.state import TrainState
from flaxmnist.errors import DamagedError
from flaxmnist.rundir.checkpoints import Checkpoints
from flaxmnist.rundir.folder import Lock
from flaxmnist.rundir.manifest import Summary
from flaxmnist.runtime import processes
from flaxmnist.runtime.console import Clock, Console
from flaxmnist.runtime.interrupts import stopping
from flaxmnist.training.experiment import Run
from flaxmnist.training.resume import Training, with_parameters
from flaxmnist.training.summary import print_table, summarize

_LOG = logging.getLogger(__name__)


def finish(
    run: Run,
    at: Training,
    first_step: int,
    lock: Lock,
    checkpoints: Checkpoints,
    console: Console,
    clock: Clock,
) -> Summary:
    """Evaluates the best state of a trained run, and writes summary and report.

    Args:
      run: the parts of the run.
      at: where training ended.
      first_step: where this process began.
      lock: of the run's directory.
      checkpoints: of the run.
      console: where to speak.
      clock: what the time was spent on.

    Returns:
      the content of ``summary.json``.

    Raises:
      StoppedError: Ctrl-C or SIGTERM stopped it.
    """
    workdir, best_step = lock.workdir, processes.broadcast(checkpoints.best_step)
    with stopping(_interrupted(at, workdir)):
        try:
            best_state = _state(at, checkpoints, best_step)
        except DamagedError as error:
            console.warn(f"{error}\nThe last state is evaluated instead.")
            best_step, best_state = at.step, at.state
        with clock("evaluate"):
            summary = summarize(run, best_state, at.step, best_step, console)
        seconds, trained = clock.table(), (at.step - first_step) * run.config.batch_size
        summary = dataclasses.replace(
            summary,
            seconds=seconds,
            images_per_second=trained / clock.seconds["train"] if trained else None,
        )
        print_table(console, summary)
        lock.remove("report.html")  # It is of an earlier summary.
        lock.write("summary.json", json.dumps(summary.to_json(), indent=2) + "\n")
        if run.config.report:
            with _only_warned_of(workdir, console):
                _report(run, best_state, summary, workdir)
    saved = ", ".join(map(str, checkpoints.steps))
    report = "report.html, plots/, " if (workdir / "report.html").exists() else ""
    spent = ", ".join(f"{name} {s:.1f}" for name, s in seconds.items())
    console.line(f"\nseconds: {spent}")
    console.line(
        f"{workdir}: {report}config.json, metrics.jsonl, summary.json, tensorboard/, "
        f"checkpoints/ (steps {saved})"
    )
    return summary


def finish_again(
    run: Run,
    at: Training,
    summary: Summary,
    lock: Lock,
    checkpoints: Checkpoints,
    console: Console,
) -> None:
    """Prints the summary of a finished run, and writes its report if that is missing.

    The arguments are those of :func:`finish`.
    """
    print_table(console, summary)
    has_report = processes.broadcast((lock.workdir / "report.html").exists())
    if run.config.report and not has_report:
        lock.check()
        with (
            stopping(_interrupted(at, lock.workdir)),
            _only_warned_of(lock.workdir, console),
        ):
            state = _state(at, checkpoints, summary.evaluated_step)
            _report(run, state, summary, lock.workdir)


def _state(at: Training, checkpoints: Checkpoints, step: int) -> TrainState:
    return at.state if step == at.step else with_parameters(at.state, checkpoints, step)


def _interrupted(at: Training, workdir: Path) -> str:
    return (
        f"interrupted: training is complete, and step {at.step} is saved; the same "
        f"command with --workdir {shlex.quote(str(workdir))} evaluates it and writes "
        "the report"
    )


@contextlib.contextmanager
def _only_warned_of(workdir: Path, console: Console) -> Iterator[None]:
    """Turns an error of the report into a warning: the results are saved already."""
    try:
        yield
    except Exception as error:
        if processes.is_peer_failure(error):
            raise
        _LOG.warning("the report was not written", exc_info=True)
        console.warn(
            f"the report was not written ({type(error).__name__}: {error}); the run is "
            "complete without it\n"
            "To write it: python -m flaxmnist.report --workdir "
            f"{shlex.quote(str(workdir))}"
        )


def _report(run: Run, state: TrainState, summary: Summary, workdir: Path) -> None:
    # Not before: what draws takes long to import.
    from flaxmnist.report.html import write_report
    from flaxmnist.training.results import collect

    results = collect(run, state, summary)
    if processes.is_first():
        write_report(results, workdir)
