"""Hooks: what a run does between two dispatches.

A hook takes the progress of a run and returns it, changed or not. Hooks run in the
order in which their results must reach the disk.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from datetime import timedelta

from flaxmnist.errors import HookError, NotFiniteError
from flaxmnist.rundir.checkpoints import Checkpoints
from flaxmnist.rundir.folder import Lock
from flaxmnist.rundir.manifest import Manifest
from flaxmnist.rundir.metrics_log import MetricsWriter, Record, eval_name
from flaxmnist.rundir.results import Figures, Summary
from flaxmnist.runtime import processes
from flaxmnist.runtime.console import Bar, Clock, Console
from flaxmnist.training.experiment import Experiment
from flaxmnist.training.observe import observed_norms, show_summaries, show_tensors
from flaxmnist.training.progress import Progress
from flaxmnist.training.summary import describe, evaluate_splits

Hook = Callable[[Progress], Progress]
UserHook = Callable[[Record | Summary], object]


@dataclasses.dataclass(frozen=True)
class Outputs:
    """Where a run writes and prints, and the clock that measures it."""

    rundir: Lock
    checkpoints: Checkpoints
    console: Console
    clock: Clock


@dataclasses.dataclass
class LogMetrics:
    """Updates the progress bar, and logs training figures every `log_every` steps."""

    experiment: Experiment
    outputs: Outputs
    writer: MetricsWriter
    bar: Bar
    first_step: int

    def __post_init__(self) -> None:
        self._logged_step = self.first_step
        seconds = self.outputs.clock.seconds
        self._logged_seconds = seconds["train"]
        self._first_seconds = seconds["train"] + seconds["evaluate"]

    def __call__(self, progress: Progress) -> Progress:
        """Logs `progress.figures` and resets `progress.metrics_since_log`."""
        experiment, clock, step = self.experiment, self.outputs.clock, progress.step
        seconds = clock.seconds["train"] - self._logged_seconds
        speed = (step - self._logged_step) * experiment.config.batch_size / seconds
        record = make_record(experiment, step, "train", progress.figures)
        record = dataclasses.replace(record, images_per_second=speed)
        self.bar(
            step,
            record.epoch,
            record.loss,
            (
                f"{record.accuracy:.1%}",
                f"ETA {self._time_left(step)}",
                f"{speed:,.0f} images/s",
            ),
        )
        if not experiment.due("log", step):
            return progress
        rate = float(experiment.schedule(experiment.put(step - 1)))
        rate *= progress.rate_scale
        with clock("train"):
            norms = observed_norms(experiment, progress.state, step)
        record = dataclasses.replace(
            record,
            learning_rate=rate,
            gradient_norm=norms.get("gradient_norm"),
            parameter_norm=norms.get("parameter_norm"),
        )
        self.outputs.console.line_without_bar(
            f"{_text(experiment, record)}  {speed:,.0f} images/s"
            f"  learning rate {rate:.2e}"
        )
        self.writer.write(record)
        self._logged_step, self._logged_seconds = step, clock.seconds["train"]
        return dataclasses.replace(
            progress,
            metrics_since_log=experiment.no_metrics(),
            records=(*progress.records, record),
        )

    def _time_left(self, step: int) -> timedelta:
        seconds = self.outputs.clock.seconds
        spent = seconds["train"] + seconds["evaluate"] - self._first_seconds
        left = (self.experiment.total_steps - step) / (step - self.first_step)
        return timedelta(seconds=round(left * spent))


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Evaluates `eval_splits` every `eval_every` steps."""

    experiment: Experiment
    outputs: Outputs
    writer: MetricsWriter

    def __call__(self, progress: Progress) -> Progress:
        """Logs the figures of each split and updates `progress.best`.

        Raises:
          NotFiniteError: the loss on a split is not finite.
        """
        experiment, step = self.experiment, progress.step
        if not experiment.due("eval", step):
            return progress
        console, splits = self.outputs.console, experiment.config.eval_splits
        records = []
        with self.outputs.clock("evaluate"):
            figures = evaluate_splits(experiment, progress.state, console, splits)
            for split, found in figures.items():
                if not math.isfinite(found.loss):
                    raise NotFiniteError(
                        f"the loss on {split} is not finite at step {step}"
                    )
                record = make_record(experiment, step, eval_name(split), found)
                console.line(_text(experiment, record))
                self.writer.write(record)
                records.append(record)
            show_summaries(experiment, progress.state, step, self.writer)
        validation = figures["validation"]
        return dataclasses.replace(
            progress,
            best=progress.best.updated(validation, step),
            validation=validation,
            records=(*progress.records, *records),
        )


@dataclasses.dataclass(frozen=True)
class LogTensors:
    """Prints and writes the outputs of `log_tensors` every `every_n_steps` steps."""

    experiment: Experiment
    outputs: Outputs
    writer: MetricsWriter

    def __call__(self, progress: Progress) -> Progress:
        """Returns `progress` unchanged."""
        if self.experiment.due("tensors", progress.step):
            rows = show_tensors(
                self.experiment, progress.state, progress.step, self.writer
            )
            for row in rows:
                self.outputs.console.line(f"step {progress.step}  {row}")
        return progress


@dataclasses.dataclass(frozen=True)
class SaveCheckpoint:
    """Saves every `checkpoint_every` steps, each best evaluation and the last step.

    Everything written about a step must be written before its checkpoint: a run that
    resumes from the checkpoint removes only what comes after it.
    """

    experiment: Experiment
    outputs: Outputs
    writer: MetricsWriter

    def __call__(self, progress: Progress) -> Progress:
        """Returns `progress` unchanged."""
        experiment, step = self.experiment, progress.step
        if (
            experiment.due("checkpoint", step)
            or progress.best.step == step
            or progress.interrupt
            or experiment.is_finished(progress)
        ):
            manifest = Manifest(
                **vars(describe(experiment)),
                best=progress.best,
                rollbacks=progress.rollbacks,
                metrics=self.writer.sync(),
                origin=experiment.origin,
            )
            self.outputs.checkpoints.save(
                step, progress.arrays, manifest, progress.validation
            )
        return progress


@dataclasses.dataclass(frozen=True)
class CallUserHooks:
    """Calls the hooks of the user with each record that was written at this step."""

    hooks: Sequence[UserHook]

    def __call__(self, progress: Progress) -> Progress:
        """Returns `progress` unchanged."""
        for record in progress.records:
            call_user_hooks(self.hooks, record)
        return progress


def call_user_hooks(hooks: Sequence[UserHook], result: Record | Summary) -> None:
    """Calls each hook with a result; of several processes, only the first calls them.

    Raises:
      HookError: a hook raised an OSError, which would otherwise be reported as an error
        of the run directory. Other exceptions pass unchanged.
    """
    for hook in hooks if processes.is_first() else ():
        try:
            hook(result)
        except OSError as error:
            raise HookError(
                f"a hook failed at step {result.step}: {type(error).__name__}: {error}"
            ) from error


def make_record(
    experiment: Experiment, step: int, split: str, figures: Figures
) -> Record:
    """Returns the record of figures that were measured at `step`."""
    epoch = experiment.epochs.at(step)
    return Record(
        step, epoch, split, figures.loss, figures.accuracy, metrics={**figures.metrics}
    )


def _text(experiment: Experiment, record: Record) -> str:
    return (
        f"step {record.step}/{experiment.total_steps}  epoch {record.epoch:.2f}  "
        f"{record.split:<10}  loss {record.loss:.4f}  accuracy {record.accuracy:.4f}"
        + "".join(f"  {name} {value:.4f}" for name, value in record.metrics.items())
    )
