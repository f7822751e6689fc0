"""The end of a run: its evaluation, its summary, and its report."""

import contextlib
import dataclasses
import json
import logging
import math
import shlex
from collections.abc import Iterator
from pathlib import Path

from flaxmnist.core.state import TrainState
from flaxmnist.data import SPLITS
from flaxmnist.errors import DamagedError, DivergedError
from flaxmnist.rundir.checkpoints import Checkpoints
from flaxmnist.rundir.history import History
from flaxmnist.rundir.results import Summary
from flaxmnist.runtime import processes
from flaxmnist.runtime.console import Console
from flaxmnist.runtime.interrupts import stop_at_interrupt
from flaxmnist.training.experiment import Experiment
from flaxmnist.training.hooks import Outputs
from flaxmnist.training.progress import Progress
from flaxmnist.training.resume import with_parameters
from flaxmnist.training.summary import print_table, summarize

_LOG = logging.getLogger(__name__)


def finish(
    experiment: Experiment, progress: Progress, first_step: int, outputs: Outputs
) -> Summary:
    """Evaluates the best state of a trained run, and writes summary and report.

    Args:
      experiment: what was trained.
      progress: the end of training.
      first_step: the step at which this process started.
      outputs: where to write and print.

    Returns:
      the content of ``summary.json``.

    Raises:
      DivergedError: the loss on a split is not finite.
      StoppedError: Ctrl-C or SIGTERM stopped it.
    """
    rundir, console, clock = outputs.rundir, outputs.console, outputs.clock
    checkpoints = outputs.checkpoints
    best_step = processes.broadcast(checkpoints.best_step)
    with stop_at_interrupt(_interrupted(progress, rundir.workdir)):
        try:
            best_state = _state(progress, checkpoints, best_step)
        except DamagedError as error:
            console.warn(f"{error}\nThe last state is evaluated instead.")
            best_step, best_state = progress.step, progress.state
        with clock("evaluate"):
            summary = summarize(
                experiment,
                best_state,
                progress.step,
                best_step,
                console,
                validation=progress.validation if best_step == progress.step else None,
            )
        trained = (progress.step - first_step) * experiment.config.batch_size
        seconds = clock.table()
        summary = dataclasses.replace(
            summary,
            seconds=seconds,
            images_per_second=trained / clock.seconds["train"] if trained else None,
        )
        print_table(console, summary)
        _check_finite(summary)
        rundir.remove("report.html")  # It is of an earlier summary.
        rundir.write("summary.json", json.dumps(summary.to_json(), indent=2) + "\n")
        if experiment.config.report:
            with errors_as_warnings(rundir.workdir, console):
                _report(experiment, best_state, summary, rundir.workdir)
    saved = ", ".join(map(str, checkpoints.steps))
    has_report = (rundir.workdir / "report.html").exists()
    report = "report.html, plots/, " if has_report else ""
    spent = ", ".join(f"{name} {s:.1f}" for name, s in seconds.items())
    console.line(f"\nseconds: {spent}")
    console.line(
        f"{rundir.workdir}: {report}config.json, metrics.jsonl, summary.json, "
        f"tensorboard/, checkpoints/ (steps {saved})"
    )
    return summary


def _check_finite(summary: Summary) -> None:
    """Raises DivergedError if the loss on a split is not finite."""
    for split in SPLITS:
        if not math.isfinite(getattr(summary, split).loss):
            raise DivergedError(
                f"the loss on {split} is not finite at step {summary.evaluated_step}, "
                "which is saved",
                "If the model returns logits that are not finite, correct it and add "
                "--allow_change. Else use another --workdir, with a smaller "
                "optimizer.learning_rate or optimizer.clip_norm=1",
            )


def finish_again(
    experiment: Experiment, progress: Progress, summary: Summary, outputs: Outputs
) -> None:
    """Prints the summary of a finished run, and writes a missing report.

    Args:
      experiment: what was trained.
      progress: the end of training.
      summary: the result of the run.
      outputs: where to write and print.

    Raises:
      StoppedError: Ctrl-C or SIGTERM stopped it.
    """
    rundir, console = outputs.rundir, outputs.console
    print_table(console, summary)
    has_report = processes.broadcast((rundir.workdir / "report.html").exists())
    if experiment.config.report and not has_report:
        rundir.check()
        with (
            stop_at_interrupt(_interrupted(progress, rundir.workdir)),
            errors_as_warnings(rundir.workdir, console),
        ):
            state = _state(progress, outputs.checkpoints, summary.evaluated_step)
            _report(experiment, state, summary, rundir.workdir)


def _state(progress: Progress, checkpoints: Checkpoints, step: int) -> TrainState:
    if step == progress.step:
        return progress.state
    return with_parameters(progress.state, checkpoints, step)


def _interrupted(progress: Progress, workdir: Path) -> str:
    return (
        f"interrupted: training is complete, and step {progress.step} is saved; the "
        f"same command with --workdir {shlex.quote(str(workdir))} evaluates it and "
        "writes the report"
    )


@contextlib.contextmanager
def errors_as_warnings(workdir: Path, console: Console) -> Iterator[None]:
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


def _report(
    experiment: Experiment, state: TrainState, summary: Summary, workdir: Path
) -> None:
    # Matplotlib takes long to import.
    from flaxmnist.report.html import write_report
    from flaxmnist.training.results import collect

    history = History(str(workdir), summary, [])
    if processes.is_first():
        history = History.read(workdir, summary)
    results = collect(experiment, state, history)
    if processes.is_first():
        write_report(results, workdir)
