"""Training from beginning to end: start or resume, train, evaluate, report."""

import dataclasses
import math
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from flaxmnist import config as configs
from flaxmnist.core.steps import all_finite
from flaxmnist.data import Dataset
from flaxmnist.errors import NotFiniteError, StoppedError, UserError, shown
from flaxmnist.paths import path_of
from flaxmnist.rundir import folder as workdirs
from flaxmnist.rundir.checkpoints import Checkpoints
from flaxmnist.rundir.metrics_log import MetricsWriter
from flaxmnist.rundir.population import check_no_members
from flaxmnist.rundir.results import Summary
from flaxmnist.runtime import processes
from flaxmnist.runtime.console import Clock, Console
from flaxmnist.runtime.interrupts import Interrupt, record_interrupts
from flaxmnist.training import programs
from flaxmnist.training.changing import likely_origin
from flaxmnist.training.compiling import compile_reports, compile_training
from flaxmnist.training.experiment import Experiment
from flaxmnist.training.finish import finish, finish_again
from flaxmnist.training.hooks import (
    CallUserHooks,
    Evaluate,
    Hook,
    LogMetrics,
    LogTensors,
    Outputs,
    SaveCheckpoint,
    UserHook,
    call_user_hooks,
)
from flaxmnist.training.observe import placement
from flaxmnist.training.progress import Progress
from flaxmnist.training.resume import begin, resume, roll_back

# Target duration of a dispatch. The progress bar moves, and interrupts take effect,
# between two dispatches.
DISPATCH_SECONDS = 0.5


def train_and_evaluate(
    config: ConfigDict | configs.Config | str | os.PathLike[str],
    workdir: str | Path,
    hooks: Sequence[UserHook] = (),
    data: Dataset | None = None,
    *,
    allow_change: bool = False,
    console: Console | None = None,
    started: float | None = None,
) -> Summary:
    """Trains to the end, from the newest checkpoint in `workdir` if there is one.

    Args:
      config: a result of :func:`flaxmnist.config.make_config` or
        :func:`flaxmnist.config.load`, or an argument of `load`, such as ``"cnn"`` or
        the path of a file.
      workdir: the run directory; receives ``config.json``, ``metrics.jsonl``,
        ``summary.json``, ``report.html``, ``plots/``, ``checkpoints/`` and
        ``tensorboard/``.
      hooks: functions that are called with a `Record` after every log and every
        evaluation, when the records of that step are written, and with the `Summary` at
        the end. Both have `step` and `to_json()`. Only process 0 calls them. An
        exception in a hook ends the run, which can then be resumed.
      data: trained on instead of those that the configuration names. To resume the run,
        give them again.
      allow_change: whether a run that resumes may change `batch_size`,
        `grad_accumulation` and the options of `optimizer`, `loss` and `augment`. It
        keeps its step and the state of the optimizer, and records the change.
      console: where to print; the standard output if None.
      started: `time.perf_counter()` at the start of the measured time; now if None.

    Returns:
      the content of ``summary.json``.

    Raises:
      UserError: an argument, the data or the directory cannot be used, another
        process is training in it, or the loss is not finite.
      StoppedError: Ctrl-C or SIGTERM stopped the run, after a checkpoint was saved,
        unless the loss is not finite.
      HookError: a hook raised an OSError.
    """
    console, clock = console or Console(), Clock(started)
    workdir = path_of(workdir, "workdir")
    check_no_members(workdir)
    if not isinstance(hooks, Sequence) or not all(map(callable, hooks)):
        raise UserError(f"hooks={shown(hooks)}: expected a list of functions")
    if not isinstance(data, Dataset | None):
        raise UserError(
            f"data={shown(data)}: expected a Dataset, such as Dataset.from_arrays(…)"
        )
    if isinstance(config, str | os.PathLike):
        config = configs.load(os.fspath(config))
    config = configs.resolve(config)
    workdirs.permit(config)
    experiment = Experiment.build(config, data, likely_origin(workdir, config))
    if experiment.dataset.warning:
        console.warn(experiment.dataset.warning)
    # Lock the directory before reading it: another process may still change it.
    with workdirs.locked(workdir) as rundir:
        allow_change = workdirs.check(rundir.workdir, experiment.config, allow_change)
        is_new = processes.broadcast(not workdirs.saved_steps(rundir.workdir))
        fresh = begin(experiment) if is_new else None
        if fresh is not None:
            # The user's code may fail when it is traced: nothing is written before.
            with clock("compile"), console.compiling(experiment.total_steps):
                fresh = compile_training(experiment, fresh)
            processes.wait_for_all()
        rundir.prepare()
        with Checkpoints(
            rundir.workdir / "checkpoints",
            experiment.config.keep_checkpoints,
            warn=console.warn,
            check=rundir.check,
        ) as checkpoints:
            outputs = Outputs(rundir, checkpoints, console, clock)
            if fresh is None:
                experiment, progress = resume(
                    experiment, checkpoints, console, allow_change
                )
            else:
                progress = fresh
            summary = _train_and_finish(experiment, progress, outputs, hooks)
    call_user_hooks(hooks, summary)
    return summary


def _train_and_finish(
    experiment: Experiment,
    progress: Progress,
    outputs: Outputs,
    hooks: Sequence[UserHook],
) -> Summary:
    """Trains from `progress` to the end and evaluates the best state."""
    workdir, console = outputs.rundir.workdir, outputs.console
    first_step, finished = progress.step, experiment.is_finished(progress)
    summary = _saved_summary(workdir, first_step) if finished else None
    if summary is not None:
        _check_unchanged(experiment, first_step, workdir)
    if first_step:
        what, total = "is finished" if finished else "resumes", experiment.total_steps
        place = f"at step {first_step} of {total}"
        if first_step > total:
            place = f"at step {first_step}, beyond the configured {total} steps"
        console.line(f"{workdir} {what} {place}")
    if summary is not None:
        if (workdir / "config.json").exists():
            # Code that its user trusts now needs no flag from then on.
            outputs.rundir.sign(experiment.config)
        else:  # Its user removed a damaged one.
            outputs.rundir.write_config(experiment.config)
        finish_again(experiment, progress, summary, outputs)
        return summary
    for change in experiment.changes:
        if change.step == first_step:
            console.line(f"changed at step {first_step}: {change}")
    outputs.rundir.write_config(experiment.config)
    if experiment.config.log_device_placement:
        for line in placement(experiment, progress.state, first_step):
            console.line(line)
    outputs.clock.started_up()
    with record_interrupts() as interrupt:
        while True:
            try:
                progress = _train(experiment, progress, outputs, hooks, interrupt)
                break
            except NotFiniteError as error:
                outputs.checkpoints.wait()
                # Neither a rollback nor the next member of a population may follow.
                if number := processes.all_processes_max(interrupt.number):
                    raise _stopped_not_finite(outputs, number, error) from None
                experiment, progress = roll_back(
                    experiment, progress, outputs.checkpoints, console, error
                )
    return finish(experiment, progress, first_step, outputs)


def _check_unchanged(experiment: Experiment, step: int, workdir: Path) -> None:
    """Raises UserError if an option of a finished run has changed at its last step."""
    if changes := [one for one in experiment.changes if one.step == step]:
        raise UserError(
            f"{workdir} is finished at step {step}, and {changes[0]} has no effect any "
            f"more. Train further as well, such as with --config.num_steps={2 * step}, "
            "or use another --workdir"
        )


def _saved_summary(workdir: Path, step: int) -> Summary | None:
    """Returns the summary of a finished run, the same in every process."""
    summary = workdirs.saved_summary(workdir, step)
    found = processes.broadcast(None if summary is None else summary.to_json())
    return None if found is None else Summary.from_json(found)


def _train(
    experiment: Experiment,
    progress: Progress,
    outputs: Outputs,
    user_hooks: Sequence[UserHook],
    interrupt: Interrupt,
) -> Progress:
    """Trains until the experiment is finished.

    Raises:
      NotFiniteError: the loss or the state is not finite.
      StoppedError: a signal stopped the run, after a checkpoint was saved.
    """
    clock, first_step, pace = outputs.clock, progress.step, 1
    with (
        _open_log(experiment, progress, outputs) as writer,
        outputs.console.training(first_step, experiment.total_steps) as bar,
    ):
        # In the order in which results must reach the disk.
        hooks: list[Hook] = [
            LogMetrics(experiment, outputs, writer, bar, first_step),
            Evaluate(experiment, outputs, writer),
            LogTensors(experiment, outputs, writer),
            SaveCheckpoint(experiment, outputs, writer),
            CallUserHooks(user_hooks),
        ]
        if not experiment.is_finished(progress):
            with clock("compile"):
                progress = compile_training(experiment, progress)
            processes.wait_for_all()
        while not experiment.is_finished(progress):
            step, seconds = progress.step, clock.seconds["train"]
            with clock("train"):
                progress = experiment.advance(progress, pace)
            if step == first_step:
                # Compile these after the first step, so that its errors appear sooner.
                with clock("compile"):
                    compile_reports(experiment, progress)
            number = processes.all_processes_max(interrupt.number)
            progress = dataclasses.replace(progress, interrupt=number)
            if not _is_finite(experiment, progress):
                raise NotFiniteError(
                    "the loss is not finite any more, between the steps "
                    f"{step} and {progress.step}"
                )
            seconds = clock.seconds["train"] - seconds
            pace = _pace(experiment, progress.step - step, seconds)
            for hook in hooks:
                progress = hook(progress)
            if progress.interrupt:
                break
        outputs.checkpoints.wait()
        # Read the signal again: it may have arrived after the last step.
        if number := processes.all_processes_max(interrupt.number):
            raise _stopped(experiment, progress, outputs, number)
    if progress.step < experiment.total_steps:
        outputs.console.line(
            f"stopped early: no better than step {progress.best.step} "
            f"in {progress.best.waited} evaluations"
        )
    return progress


def _open_log(
    experiment: Experiment, progress: Progress, outputs: Outputs
) -> MetricsWriter:
    return MetricsWriter(
        outputs.rundir.workdir,
        progress.step,
        experiment.config.eval_splits,
        written=progress.log_position,
        changes=experiment.changes,
        config=configs.flat(experiment.config),
        warn=outputs.console.warn,
        check=outputs.rundir.check,
    )


def _stopped(
    experiment: Experiment, progress: Progress, outputs: Outputs, number: int
) -> StoppedError:
    then = "evaluates it" if experiment.is_finished(progress) else "resumes from there"
    workdir = shlex.quote(str(outputs.checkpoints.directory.parent))
    return StoppedError(
        number,
        f"stopped at step {progress.step} of {experiment.total_steps}, which is saved; "
        f"--workdir {workdir} {then}",
    )


def _stopped_not_finite(
    outputs: Outputs, number: int, error: NotFiniteError
) -> StoppedError:
    then, steps = "starts again at step 0", outputs.checkpoints.steps
    if steps:
        then = f"resumes from step {steps[-1]}, which is saved"
    workdir = shlex.quote(str(outputs.checkpoints.directory.parent))
    return StoppedError(number, f"stopped, and {error}; --workdir {workdir} {then}")


def _is_finite(experiment: Experiment, progress: Progress) -> bool:
    """Returns whether the loss and, before any output, the state are finite."""
    if not math.isfinite(progress.figures.loss):
        return False
    events = any(experiment.due(event, progress.step) for event in experiment.every)
    # The loss precedes the last update, which may have made the state NaN.
    return not (progress.interrupt or events) or bool(
        programs.call(all_finite, 0, progress.state)
    )


def _pace(experiment: Experiment, steps: int, seconds: float) -> int:
    """Returns the number of steps of the next dispatch."""
    # The clocks of processes differ, but all must dispatch the same steps.
    if jax.process_count() > 1:
        return experiment.every["log"].steps
    return max(1, math.ceil(steps * DISPATCH_SECONDS / seconds))
