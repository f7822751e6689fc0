"""A run: started or resumed, trained, evaluated and summed up."""

import dataclasses
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from flaxmnist import config as configs
from flaxmnist import sharding
from flaxmnist import workdir as workdirs
from flaxmnist.checkpoint import Checkpoints, DamagedError, is_better
from flaxmnist.checks import UserError
from flaxmnist.evaluate import evaluate
from flaxmnist.metrics import Metrics
from flaxmnist.run import Run, build
from flaxmnist.state import TrainState, abstract_state, create_state
from flaxmnist.steps import all_finite, eval_steps, train_steps
from flaxmnist.summary import describe, print_table, summarize
from flaxmnist.writers import Clock, Console, MetricsWriter, write_text

# How long a dispatch should take: the bar moves and signals are heard between two.
DISPATCH_SECONDS = 0.5


@dataclasses.dataclass
class Training:
    """Where training is: all that a checkpoint holds, so all that resuming needs.

    Attributes:
      step: updates made.
      state: the train state, on the mesh.
      window: metrics of the steps since the last log.
      best: the best `validation` figures, their `step`, and how many evaluations
        have `waited` for better ones.
    """

    step: int
    state: TrainState
    window: Metrics
    best: dict[str, Any]

    def finished(self, run: Run) -> bool:
        """Returns whether nothing is left to train."""
        patience = run.config.patience
        out_of_patience = patience is not None and self.best["waited"] >= patience
        return self.step >= run.total_steps or out_of_patience


def abstract_tree(run: Run) -> dict[str, Any]:
    """Returns the shapes and shardings of the arrays that a checkpoint holds."""
    return {
        "state": abstract_state(run.model, run.tx, run.everywhere),
        "window": sharding.abstract(Metrics.empty, run.everywhere),
    }


def _expected(run: Run) -> tuple[dict[str, Any], Callable[[dict[str, Any]], None]]:
    """Returns what a checkpoint of this run is restored into, and checked with."""
    return abstract_tree(run), functools.partial(_check_same_run, run)


def _check_same_run(run: Run, record: dict[str, Any]) -> None:
    """Raises UserError unless a checkpoint's record is of this run."""
    before = record["dataset"]
    if before["fingerprint"] != run.dataset.fingerprint:
        raise UserError(
            f"this run was trained on {before['name']} ({before['source']}, "
            f"{before['counts']['train']:,} examples), but the data is now "
            f"{run.dataset.name} ({run.dataset.source}, {len(run.dataset.train):,}): "
            "set data.source and data.dir to the former, or use another --workdir"
        )
    trained = configs.resolve(ConfigDict(record["config"], type_safe=False))
    workdirs.check_same(trained, run.config)


def evaluate_checkpoint(
    config: ConfigDict,
    workdir: str | Path,
    step: int | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Evaluates a run's best checkpoint on validation, or that of `step`.

    Returns:
      a summary as `train_and_evaluate` makes it; nothing is written.

    Raises:
      UserError: there is no such run, or no such checkpoint.
    """
    console = console or Console()
    workdir = Path(workdir)
    folder = workdir / "checkpoints"
    if not folder.is_dir():
        raise UserError(f"no checkpoint in {workdir}: train first")
    config = configs.resolve(config)
    workdirs.check(workdir, config)
    with Checkpoints(folder, read_only=True) as checkpoints:
        chosen = checkpoints.best_step if step is None else step
        if chosen is None:
            raise UserError(f"no checkpoint in {workdir}: train first")
        run = build(config)
        tree, _ = checkpoints.restore(chosen, *_expected(run))
        last_step = checkpoints.steps[-1]
    if run.dataset.warning:
        console.warn(run.dataset.warning)
    summary = summarize(run, tree["state"], last_step, chosen)
    print_table(console, summary)
    return summary


def train_and_evaluate(
    config: ConfigDict,
    workdir: str | Path,
    console: Console | None = None,
    started: float | None = None,
) -> dict[str, Any]:
    """Trains to the end, from the newest checkpoint in `workdir` if there is one.

    Args:
      config: see `flaxmnist.config.make_config`.
      workdir: gets ``config.json``, ``metrics.jsonl``, ``summary.json``,
        ``checkpoints/`` and ``tensorboard/``.
      console: where to speak; the standard output if None.
      started: `time.time()` of the process's start, for the time table.

    Returns:
      what ``summary.json`` holds.

    Raises:
      UserError: the configuration, the data or the folder cannot be used, or the loss
        is not finite any more.
    """
    console, clock, workdir = console or Console(), Clock(started), Path(workdir)
    config = configs.resolve(config)
    workdirs.check(workdir, config)
    run = build(config)
    if run.dataset.warning:
        console.warn(run.dataset.warning)

    workdirs.make_writable(workdir)
    with Checkpoints(
        workdir / "checkpoints", config.keep_checkpoints, warn=console.warn
    ) as checkpoints:
        return _train_and_evaluate(run, workdir, checkpoints, console, clock)


def _train_and_evaluate(
    run: Run, workdir: Path, checkpoints: Checkpoints, console: Console, clock: Clock
) -> dict[str, Any]:
    at = _restore_or_create(run, checkpoints, console)
    if jax.process_index() == 0:
        write_text(workdir / "config.json", configs.to_json(run.config))
    if at.step:
        what = "is finished" if at.finished(run) else "resumes"
        console.line(f"{workdir} {what} at step {at.step} of {run.total_steps}")
        if at.finished(run) and (summary := workdirs.saved_summary(workdir, at.step)):
            print_table(console, summary)
            return summary
    first_step = at.step
    clock.started_up()

    with clock("compile"):
        _compile(run, at)
    with MetricsWriter(workdir, at.step) as writer:
        _train(run, at, checkpoints, console, writer, clock)
    checkpoints.wait()

    best_step, best_state = checkpoints.best_step or at.step, at.state
    if best_step != at.step:
        try:
            tree, _ = checkpoints.restore(best_step, *_expected(run))
            best_state = tree["state"]
        except DamagedError as error:
            console.warn(f"{error}\nThe last state is evaluated instead.")
            best_step = at.step
    with clock("evaluate"):
        summary = summarize(run, best_state, at.step, best_step)
    summary["seconds"] = clock.table()
    trained = (at.step - first_step) * run.config.batch_size
    summary["images_per_second"] = trained / clock.seconds["train"] if trained else None
    if jax.process_index() == 0:
        write_text(workdir / "summary.json", json.dumps(summary, indent=2) + "\n")
    print_table(console, summary)
    seconds = ", ".join(f"{name} {s:.1f}" for name, s in summary["seconds"].items())
    saved = ", ".join(map(str, checkpoints.steps))
    console.line(f"\nseconds: {seconds}")
    console.line(
        f"{workdir}: config.json, metrics.jsonl, summary.json, tensorboard/, "
        f"checkpoints/ (steps {saved})"
    )
    return summary


def _restore_or_create(
    run: Run, checkpoints: Checkpoints, console: Console
) -> Training:
    restored = checkpoints.restore_newest(*_expected(run))
    if restored is None:
        state = create_state(run.model, run.tx, run.config.seed, run.everywhere)
        best = {"validation": None, "step": None, "waited": 0}
        return Training(0, state, _no_metrics(run), best)
    step, tree, record = restored
    if record["total_steps"] != run.total_steps and step < run.total_steps:
        console.warn(
            f"the run is now {run.total_steps} steps long, no longer "
            f"{record['total_steps']}: a cosine or one_cycle schedule is stretched to "
            "that, and the learning rate jumps"
        )
    return Training(step, tree["state"], tree["window"], record["best"])


def _compile(run: Run, at: Training) -> None:
    """Dispatches zero steps of each kind: that compiles, and changes nothing."""
    zero = run.put(0)
    if not at.finished(run):
        batches, _ = next(run.feed.spans(at.step, at.step + 1))
        at.state, at.window = train_steps(at.state, at.window, batches, zero)
    for feed in run.eval_feeds.values():
        batches, _ = next(feed.spans(0, 1))
        eval_steps(at.state, _no_metrics(run), batches, zero, zero)
    all_finite(at.state)
    run.schedule(at.step)


def _no_metrics(run: Run) -> Metrics:
    return sharding.put_tree(Metrics.empty(), run.everywhere)


def _train(
    run: Run,
    at: Training,
    checkpoints: Checkpoints,
    console: Console,
    writer: MetricsWriter,
    clock: Clock,
) -> None:
    """Trains until `at` is finished."""
    pace, logged_step, logged_seconds = 1, at.step, clock.seconds["train"]
    with console.progress(at.step, run.total_steps):
        while not at.finished(run):
            first, begin = at.step, clock.seconds["train"]
            with clock("train"):
                figures = _advance(run, at, run.next_stop(first, pace))
            finite = math.isfinite(figures["loss"])
            if finite and any(run.due(event, at.step) for event in run.every):
                # The loss is of before the last update; what that made may not be.
                finite = all_finite(at.state)
            if not finite:
                raise _not_finite(run, checkpoints, first, at.step)
            pace = _pace(run, at.step - first, clock.seconds["train"] - begin)

            record = _record(run, at.step, "train", figures)
            record["images_per_second"] = (
                (at.step - logged_step)
                * run.config.batch_size
                / (clock.seconds["train"] - logged_seconds)
            )
            console.update(record)

            # Whatever is written of a step is written before its checkpoint: a run
            # that resumes from it takes back only what comes after.
            if run.due("log", at.step):
                record["learning_rate"] = float(run.schedule(at.step - 1))
                console.report(record, run.total_steps)
                writer.write(record)
                at.window = _no_metrics(run)
                logged_step, logged_seconds = at.step, clock.seconds["train"]
            validation = None
            if run.due("eval", at.step):
                with clock("evaluate"):
                    feed = run.eval_feeds["validation"]
                    validation = evaluate(at.state, feed, run.everywhere).compute()
                record = _record(run, at.step, "validation", validation)
                console.report(record, run.total_steps)
                writer.write(record)
                at.best = _better(at, validation)
            improved = at.best["step"] == at.step
            if run.due("checkpoint", at.step) or improved or at.finished(run):
                checkpoints.save(
                    at.step,
                    {"state": at.state, "window": at.window},
                    describe(run) | {"best": at.best},
                    validation,
                )
    if at.step < run.total_steps:
        console.line(
            f"stopped early: no better than step {at.best['step']} "
            f"in {at.best['waited']} evaluations"
        )


def _advance(run: Run, at: Training, stop: int) -> dict[str, Any]:
    """Trains up to `stop` and returns the figures of the window."""
    with jax.transfer_guard("disallow"):
        for batches, count in run.feed.spans(at.step, stop):
            at.state, at.window = train_steps(
                at.state, at.window, batches, run.put(count)
            )
        at.step = stop
        return jax.device_get(at.window).compute()


def _pace(run: Run, steps: int, seconds: float) -> int:
    """Returns how many steps the next dispatch should take."""
    if jax.process_count() > 1:  # Processes must cut alike, and their clocks differ.
        return run.every["log"]
    return max(1, math.ceil(steps * DISPATCH_SECONDS / seconds))


def _record(run: Run, step: int, split: str, figures: dict[str, Any]) -> dict[str, Any]:
    return {
        "step": step,
        "epoch": step / run.feed.steps_per_epoch,
        "split": split,
        "loss": figures["loss"],
        "accuracy": figures["accuracy"],
    }


def _better(at: Training, validation: dict[str, Any]) -> dict[str, Any]:
    if is_better(validation, at.best["validation"]):
        return {"validation": validation, "step": at.step, "waited": 0}
    return at.best | {"waited": at.best["waited"] + 1}


def _not_finite(run: Run, checkpoints: Checkpoints, first: int, last: int) -> UserError:
    checkpoints.wait()
    kept = "there is no checkpoint yet"
    if steps := checkpoints.steps:
        kept = (
            f"the last good checkpoint is of step {steps[-1]}, "
            f"in {checkpoints.directory}"
        )
    return UserError(
        f"the loss is not finite any more, between the steps {first} and {last}; {kept}"
        f"\nTry a smaller optimizer.learning_rate than "
        f"{run.config.optimizer.learning_rate:g}, or optimizer.clip_norm=1"
    )
