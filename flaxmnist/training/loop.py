"""A run: started or resumed, trained, evaluated and summed up."""

import math
import os
import shlex
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from flaxmnist import config as configs
from flaxmnist.core import sharding
from flaxmnist.core.steps import all_finite, eval_steps, train_steps
from flaxmnist.errors import NotFiniteError, StoppedError
from flaxmnist.paths import path_of
from flaxmnist.rundir import folder as workdirs
from flaxmnist.rundir.checkpoints import Checkpoints
from flaxmnist.rundir.manifest import Figures, Manifest, Summary
from flaxmnist.rundir.metrics_log import MetricsWriter, eval_name
from flaxmnist.runtime import processes
from flaxmnist.runtime.console import Clock, Console
from flaxmnist.runtime.interrupts import listening
from flaxmnist.training.experiment import Run, build
from flaxmnist.training.finish import finish, finish_again
from flaxmnist.training.hooks import show_summaries, show_tensors, watched_norms
from flaxmnist.training.resume import Training, begin, resume, roll_back
from flaxmnist.training.summary import describe, evaluate_splits

# How long a dispatch should take: the bar moves and signals are heard between two.
DISPATCH_SECONDS = 0.5


def train_and_evaluate(
    config: ConfigDict | configs.Config | str | os.PathLike[str],
    workdir: str | Path,
    console: Console | None = None,
    started: float | None = None,
) -> Summary:
    """Trains to the end, from the newest checkpoint in `workdir` if there is one.

    Args:
      config: as :func:`flaxmnist.config.make_config` or :func:`flaxmnist.config.load`
        returns it; or what `load` takes, such as ``"cnn"`` or the path of a file.
      workdir: gets ``config.json``, ``metrics.jsonl``, ``summary.json``,
        ``report.html``, ``plots/``, ``checkpoints/`` and ``tensorboard/``.
      console: where to speak; the standard output if None.
      started: `time.perf_counter()` at the start of the time table; now if None.

    Returns:
      the content of ``summary.json``.

    Raises:
      UserError: the configuration, the data or the folder cannot be used, another run
        is in it, or the loss is not finite any more.
      StoppedError: Ctrl-C or SIGTERM stopped it, after it was saved.
    """
    console, clock = console or Console(), Clock(started)
    workdir = path_of(workdir, "workdir")
    if isinstance(config, str | os.PathLike):
        config = configs.load(os.fspath(config))
    config = configs.resolve(config)
    run = build(config)
    if run.dataset.warning:
        console.warn(run.dataset.warning)
    # Lock the directory before reading it: another process may still change it.
    with workdirs.locked(workdir) as lock:
        workdirs.check(lock.workdir, config)
        is_new = processes.broadcast(not workdirs.saved_steps(lock.workdir))
        fresh = begin(run) if is_new else None
        lock.prepare()
        with Checkpoints(
            lock.workdir / "checkpoints",
            config.keep_checkpoints,
            warn=console.warn,
            check=lock.check,
        ) as checkpoints:
            at = fresh or resume(run, checkpoints, console)
            return _train_and_evaluate(run, at, lock, checkpoints, console, clock)


def _train_and_evaluate(
    run: Run,
    at: Training,
    lock: workdirs.Lock,
    checkpoints: Checkpoints,
    console: Console,
    clock: Clock,
) -> Summary:
    workdir, first_step = lock.workdir, at.step
    if at.step:
        what = "is finished" if at.finished(run) else "resumes"
        console.line(f"{workdir} {what} at step {at.step} of {run.total_steps}")
    if at.finished(run):
        summary = processes.broadcast(workdirs.saved_summary(workdir, at.step))
        if summary is not None:
            finish_again(run, at, summary, lock, checkpoints, console)
            return summary
    lock.write("config.json", configs.to_json(run.config))
    if run.config.log_device_placement:
        _log_placement(run, at, console)
    clock.started_up()

    while True:
        try:
            with MetricsWriter(
                workdir,
                at.step,
                run.config.eval_splits,
                written=at.written,
                warn=console.warn,
                check=lock.check,
            ) as writer:
                _train(run, at, checkpoints, console, writer, clock)
            break
        except NotFiniteError as error:
            at = roll_back(run, at, checkpoints, console, error)
    return finish(run, at, first_step, lock, checkpoints, console, clock)


def _compile_training(run: Run, at: Training) -> None:
    """Dispatches zero steps: that compiles, and changes nothing."""
    batches, _ = next(run.feed.spans(at.step, at.step + 1))
    at.state, at.window = train_steps(at.state, at.window, batches, run.put(0))


def _compile_reports(run: Run, at: Training) -> None:
    """Does so with all that follows on training steps."""
    zero = run.put(0)
    watched_norms(run, at.state, at.step)
    for feed in run.eval_feeds.values():
        batches, _ = next(feed.spans(0, 1))
        eval_steps(at.state, run.no_metrics(), batches, zero, zero)
    all_finite(at.state)
    run.schedule(zero)


def _log_placement(run: Run, at: Training, console: Console) -> None:
    """Prints where each parameter and each array of a batch lives."""
    batches, _ = next(run.feed.spans(at.step, at.step + 1))
    batch = jax.jit(lambda batches, step: batches.at(step))(batches, at.state.step)
    console.line(f"mesh: {dict(run.everywhere.mesh.shape)}")
    for line in sharding.placement({"params": at.state.params, "batch": batch}):
        console.line(line)


def _train(
    run: Run,
    at: Training,
    checkpoints: Checkpoints,
    console: Console,
    writer: MetricsWriter,
    clock: Clock,
) -> None:
    """Trains until `at` is finished."""
    started, pace = at.step, 1
    logged_step, logged_seconds = at.step, clock.seconds["train"]
    with listening() as signals, console.training(at.step, run.total_steps) as update:
        if not at.finished(run):
            with clock("compile"):
                _compile_training(run, at)
            processes.wait_for_all()
        while not at.finished(run):
            first, begin = at.step, clock.seconds["train"]
            with clock("train"):
                figures = advance(run, at, run.next_stop(first, pace))
            if first == started:
                # Not sooner: a first step that fails is heard of at once.
                with clock("compile"):
                    _compile_reports(run, at)
            stop = processes.all_processes_max(signals.number)
            finite = math.isfinite(figures.loss)
            if finite and (stop or any(run.due(event, at.step) for event in run.every)):
                # The loss is of before the last update; what that made may not be.
                finite = all_finite(at.state)
            if not finite:
                raise NotFiniteError(first, at.step)
            pace = _pace(run, at.step - first, clock.seconds["train"] - begin)

            record = _record(run, at.step, "train", figures)
            record["images_per_second"] = (
                (at.step - logged_step)
                * run.config.batch_size
                / (clock.seconds["train"] - logged_seconds)
            )
            left = (run.total_steps - at.step) / (at.step - started)
            update(record, left * (clock.seconds["train"] + clock.seconds["evaluate"]))

            # Whatever is written of a step is written before its checkpoint: a run
            # that resumes from it takes back only what comes after.
            if run.due("log", at.step):
                rate = float(run.schedule(run.put(at.step - 1)))
                record["learning_rate"] = rate * at.rate_scale
                with clock("train"):
                    record |= watched_norms(run, at.state, at.step)
                console.report(record, run.total_steps)
                writer.write(record)
                at.window = run.no_metrics()
                logged_step, logged_seconds = at.step, clock.seconds["train"]
            validation = None
            if run.due("eval", at.step):
                with clock("evaluate"):
                    validation = _evaluate(run, at, console, writer)
                    show_summaries(run, at.state, at.step, writer)
                at.best = at.best.updated(validation, at.step)
            if run.due("tensors", at.step):
                show_tensors(run, at.state, at.step, console, writer)
            improved = at.best.step == at.step
            last = stop or at.finished(run)
            if run.due("checkpoint", at.step) or improved or last:
                checkpoints.save(
                    at.step,
                    {"state": at.state, "window": at.window.sums},
                    Manifest(
                        **vars(describe(run)),
                        best=at.best,
                        rollbacks=at.rollbacks,
                        metrics=writer.sync(),
                    ),
                    validation,
                )
            if stop:
                break
        checkpoints.wait()
        if stop := processes.all_processes_max(signals.number):  # Or one heard since.
            then = "evaluates it" if at.finished(run) else "resumes from there"
            workdir = shlex.quote(str(checkpoints.directory.parent))
            raise StoppedError(
                stop,
                f"stopped at step {at.step} of {run.total_steps}, which is saved; "
                f"--workdir {workdir} {then}",
            )
    if at.step < run.total_steps:
        console.line(
            f"stopped early: no better than step {at.best.step} "
            f"in {at.best.waited} evaluations"
        )


def advance(run: Run, at: Training, stop: int) -> Figures:
    """Trains up to `stop` and returns the figures of the window."""
    # Without compilation, each operation transfers its constants.
    eager = jax.config.jax_disable_jit  # type: ignore[attr-defined]
    with jax.transfer_guard("allow" if eager else "disallow"):
        for batches, count in run.feed.spans(at.step, stop):
            at.state, at.window = train_steps(
                at.state, at.window, batches, run.put(count)
            )
        at.step = stop
        return Figures(**jax.device_get(at.window).compute())


def _evaluate(
    run: Run, at: Training, console: Console, writer: MetricsWriter
) -> Figures:
    """Reports `config.eval_splits` and returns the figures of validation."""
    figures = evaluate_splits(run, at.state, console, run.config.eval_splits)
    for split, found in figures.items():
        record = _record(run, at.step, eval_name(split), found)
        console.report(record, run.total_steps)
        writer.write(record)
    return figures["validation"]


def _pace(run: Run, steps: int, seconds: float) -> int:
    """Returns how many steps the next dispatch should take."""
    if jax.process_count() > 1:  # Processes must cut alike, and their clocks differ.
        return run.every["log"]
    return max(1, math.ceil(steps * DISPATCH_SECONDS / seconds))


def _record(run: Run, step: int, split: str, figures: Figures) -> dict[str, Any]:
    return {
        "step": step,
        "epoch": step / run.feed.steps_per_epoch,
        "split": split,
        "loss": figures.loss,
        "accuracy": figures.accuracy,
    }
