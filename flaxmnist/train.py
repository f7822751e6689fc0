"""A run: started or resumed, trained, evaluated and summed up."""

import json
import math
import time
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from flaxmnist import config as configs
from flaxmnist.checkpoint import Checkpoints, is_better
from flaxmnist.checks import UserError, to_steps
from flaxmnist.evaluate import evaluate
from flaxmnist.run import Run, build
from flaxmnist.state import create_state
from flaxmnist.steps import global_norm, train_steps
from flaxmnist.summary import describe, print_table, summarize
from flaxmnist.writers import Clock, Console, MetricsWriter, write_text

# How long a dispatch should take: the bar moves and signals are heard between two.
DISPATCH_SECONDS = 0.5


def check_workdir(config: ConfigDict, workdir: Path) -> None:
    """Raises UserError if `workdir` cannot hold this run; writes nothing into it."""
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir {workdir} is a file: expected a folder")
    saved = workdir / "config.json"
    if not saved.exists():
        return
    try:
        before = configs.from_json(saved.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{saved} cannot be read ({error}): use another --workdir"
        ) from None
    changed = configs.differences(before, config)
    if changed:
        raise UserError(
            f"{workdir} holds a run of another configuration: use another --workdir, or "
            f"its options\n{'; '.join(changed)}"
        )


def _open_workdir(config: ConfigDict, workdir: Path) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_text(workdir / "config.json", configs.to_json(config))
    except OSError as error:
        raise UserError(
            f"--workdir {workdir} cannot be written ({error.strerror}): use another"
        ) from None


def _check_same_data(run: Run, record: dict[str, Any]) -> None:
    before = record["dataset"]
    if before["fingerprint"] != run.dataset.fingerprint:
        raise UserError(
            f"this run was trained on {before['name']} ({before['source']}, "
            f"{before['counts']['train']:,} examples), but the data is now "
            f"{run.dataset.name} ({run.dataset.source}, {len(run.dataset.train):,}): set "
            "data.source and data.dir to the former, or use another --workdir"
        )


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
        raise UserError(f"no checkpoint in {workdir}: train first, with --mode train")
    config = configs.resolve(config)
    check_workdir(config, workdir)
    checkpoints = Checkpoints(folder, read_only=True)
    chosen = checkpoints.best_step if step is None else step
    if chosen is None:
        raise UserError(f"no checkpoint in {workdir}: train first, with --mode train")
    if chosen not in checkpoints.steps:
        there = ", ".join(map(str, checkpoints.steps))
        raise UserError(
            f"no checkpoint of step {chosen} in {workdir}: there are {there}"
        )
    run = build(config)
    tree, record = checkpoints.restore(chosen, run.abstract())
    _check_same_data(run, record)
    summary = summarize(run, tree["state"], checkpoints.steps[-1], chosen)
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
    console = console or Console()
    clock = Clock(started)
    workdir = Path(workdir)
    config = configs.resolve(config)
    check_workdir(config, workdir)
    run = build(config)
    if run.dataset.warning:
        console.warn(run.dataset.warning)

    # Start, or resume.
    _open_workdir(config, workdir)
    checkpoints = Checkpoints(workdir / "checkpoints", config.keep_checkpoints)
    best: dict[str, Any] = {"validation": None, "step": None, "waited": 0}
    restored = checkpoints.restore_newest(run.abstract(), console.warn)
    if restored is None:
        step = 0
        state = create_state(run.model, run.tx, config.seed, run.everywhere)
        window = run.empty_metrics()
    else:
        step, tree, record = restored
        _check_same_data(run, record)
        state, window, best = tree["state"], tree["window"], record["best"]
    total = run.total_steps
    finished = _is_finished(run, step, best)
    if step:
        what = "is finished" if finished else "resumes"
        console.line(f"{workdir} {what} at step {step} of {total}")
        if finished and (summary := _finished_summary(workdir, step)):
            print_table(console, summary)
            return summary
    writer = MetricsWriter(workdir, step) if jax.process_index() == 0 else None

    def report(record: dict[str, Any]) -> None:
        console.report(record, total)
        if writer:
            writer.write(record)

    per_epoch = run.feed.steps_per_epoch
    log_every, eval_every, checkpoint_every = (
        to_steps(config[name], per_epoch)
        for name in ("log_every", "eval_every", "checkpoint_every")
    )
    clock.started_up()

    # Zero steps: compiles, and changes nothing.
    if not finished:
        with clock("compile"):
            batches, _ = next(run.feed.spans(step, step + 1))
            state, window = train_steps(state, window, batches, run.put(0))
            evaluate(state, run.eval_feeds["validation"], run.everywhere, num_steps=0)

    first_step, logged_step, logged_seconds = step, step, 0.0
    pace = 1
    with console.progress(step, total):
        while not finished:
            stop = min(
                step + pace,
                total,
                *(
                    (step // every + 1) * every
                    for every in (log_every, eval_every, checkpoint_every)
                ),
            )
            begin = time.perf_counter()
            with clock("train"), jax.transfer_guard("disallow"):
                for batches, count in run.feed.spans(step, stop):
                    state, window = train_steps(state, window, batches, run.put(count))
                sums = jax.device_get(window)
            seconds = time.perf_counter() - begin
            if jax.process_count() == 1:
                pace = max(1, math.ceil((stop - step) * DISPATCH_SECONDS / seconds))
            else:  # Processes must cut alike, and their clocks differ.
                pace = log_every
            if not math.isfinite(sums.loss_sum):
                raise _not_finite(run, checkpoints, step, stop)
            step = stop
            logged_seconds += seconds
            figures = sums.compute()
            record = {
                "step": step,
                "epoch": step / per_epoch,
                "split": "train",
                "loss": figures["loss"],
                "accuracy": figures["accuracy"],
                "learning_rate": float(run.schedule(step - 1)),
                "images_per_second": (step - logged_step)
                * config.batch_size
                / logged_seconds,
            }
            console.update(record)

            # The order of these three is what a resumed run relies on: whatever is
            # written of a step is written before its checkpoint.
            if step % log_every == 0 or step == total:
                report(record)
                window = run.empty_metrics()
                logged_step, logged_seconds = step, 0.0
            validation = None
            if step % eval_every == 0 or step == total:
                with clock("evaluate"):
                    feed = run.eval_feeds["validation"]
                    validation = evaluate(state, feed, run.everywhere).compute()
                report(
                    {"step": step, "epoch": step / per_epoch, "split": "validation"}
                    | validation
                )
                if is_better(validation, best["validation"]):
                    best = {"validation": validation, "step": step, "waited": 0}
                else:
                    best = best | {"waited": best["waited"] + 1}
            finished = _is_finished(run, step, best)
            if step % checkpoint_every == 0 or best["step"] == step or finished:
                if not math.isfinite(global_norm(state.params)):
                    raise _not_finite(run, checkpoints, logged_step, step)
                checkpoints.save(
                    step,
                    {"state": state, "window": window},
                    describe(run) | {"best": best},
                    validation,
                )
    if step < total:
        console.line(
            f"stopped early: no better than step {best['step']} "
            f"in {best['waited']} evaluations"
        )

    # Sum up, with what was best on validation.
    checkpoints.wait()
    evaluated_step = checkpoints.best_step or step
    if evaluated_step != step:
        tree, _ = checkpoints.restore(evaluated_step, run.abstract())
        state = tree["state"]
    with clock("evaluate"):
        summary = summarize(run, state, step, evaluated_step)
    checkpoints.close()
    if writer:
        writer.close()
    images = (step - first_step) * config.batch_size
    summary["seconds"] = clock.table()
    summary["images_per_second"] = images / max(clock.seconds["train"], 1e-9)
    if jax.process_index() == 0:
        write_text(workdir / "summary.json", json.dumps(summary, indent=2) + "\n")
    print_table(console, summary)
    console.line()
    console.line(
        "seconds: "
        + ", ".join(f"{name} {value:.1f}" for name, value in summary["seconds"].items())
    )
    console.line(
        f"{workdir}: config.json, metrics.jsonl, summary.json, tensorboard/, "
        f"checkpoints/ (steps {', '.join(map(str, checkpoints.steps))})"
    )
    return summary


def _is_finished(run: Run, step: int, best: dict[str, Any]) -> bool:
    patience = run.config.patience
    return step >= run.total_steps or (
        patience is not None and best["waited"] >= patience
    )


def _finished_summary(workdir: Path, step: int) -> dict[str, Any] | None:
    try:
        summary = json.loads((workdir / "summary.json").read_text())
    except (OSError, ValueError):
        return None
    return summary if summary.get("step") == step else None


def _not_finite(run: Run, checkpoints: Checkpoints, first: int, last: int) -> UserError:
    checkpoints.wait()
    steps = checkpoints.steps
    kept = (
        f"the last good checkpoint is of step {steps[-1]}, in {checkpoints.directory}"
        if steps
        else "there is no checkpoint yet"
    )
    return UserError(
        f"the loss is not finite any more, between the steps {first} and {last}: "
        f"{kept}\nTry a smaller optimizer.learning_rate than "
        f"{run.config.optimizer.learning_rate:g}, or optimizer.clip_norm=1"
    )
