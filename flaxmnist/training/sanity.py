"""A configuration tried before it is trained; nothing is written."""

import dataclasses
import math
import time
from typing import Any

from flaxmnist.config import Config
from flaxmnist.core import models
from flaxmnist.data import Split
from flaxmnist.data.feeds import FEEDS, Feed
from flaxmnist.errors import UserError
from flaxmnist.runtime.console import Console
from flaxmnist.training.experiment import Run, build
from flaxmnist.training.loop import advance
from flaxmnist.training.resume import begin
from flaxmnist.training.summary import evaluate_splits

# Of `overfit`: when to stop, and when to give up.
LEARNT, MOST_STEPS, STEPS = 1e-3, 2_000, 50


def _feed(run: Run, split: Split, count: int, seed: int | None = None) -> Feed:
    """Returns a feed of the first `count` examples, in the batches of the run."""
    few = Split(split.images[:count], split.labels[:count])
    mesh = run.layout.mesh
    parts = mesh.shape["data"]
    size = run.config.batch_size if seed is not None else count
    return FEEDS[run.config.data.placement](few, -(-size // parts) * parts, mesh, seed)


def dry_run(config: Config, console: Console | None = None) -> None:
    """Builds what `config` describes, trains a step and evaluates a batch.

    Raises:
      UserError: something in it is not possible.
    """
    console = console or Console()
    run = build(config)
    at = begin(run)
    console.line(
        f"{run.config.model.name} ({models.num_parameters(at.state.params):,} "
        f"parameters), on {run.dataset.name} ({run.dataset.source}), "
        f"{run.total_steps:,} steps of {run.config.batch_size}"
    )
    begun = time.perf_counter()
    figures = advance(run, at, 1)
    seconds = time.perf_counter() - begun
    console.line(
        f"a training step: loss {figures.loss:.4f} ({seconds:.1f} s, compilation "
        "included)"
    )
    size = run.config.eval_batch_size
    feed = _feed(run, run.dataset.validation, min(size, len(run.dataset.validation)))
    small = dataclasses.replace(run, eval_feeds={"validation": feed})
    found = evaluate_splits(small, at.state, console, ("validation",))["validation"]
    console.line(
        f"a batch evaluated: loss {found.loss:.4f}, "
        f"accuracy {found.accuracy:.2%} of {found.count}"
    )
    console.line("nothing was written; without --dry_run it trains")


def overfit(config: Config, batches: int, console: Console | None = None) -> bool:
    """Trains on a few batches alone, over and over, without dropout or schedule.

    A model and an optimizer that cannot learn one batch by heart can learn nothing: the
    first thing to try on a new one.

    Args:
      config: what to try.
      batches: how many of the first batches.
      console: where to speak; the standard output if None.

    Returns:
      whether the loss fell under `LEARNT`, or at least all examples are recognised.

    Raises:
      UserError: something in `config` is not possible, or there are fewer batches.
    """
    console = console or Console()
    model = config.model
    if hasattr(model, "dropout_rate"):
        no_dropout: dict[str, Any] = {"dropout_rate": 0.0}
        model = dataclasses.replace(model, **no_dropout)
    optimizer = dataclasses.replace(
        config.optimizer, schedule="constant", warmup=None, decay_rate=None
    )
    run = build(
        dataclasses.replace(
            config,
            num_epochs=None,
            num_steps=MOST_STEPS,
            model=model,
            optimizer=optimizer,
        )
    )
    size, train = batches * run.config.batch_size, run.dataset.train
    if size > len(train):
        raise UserError(
            f"--overfit {batches}: expected at most "
            f"{len(train) // run.config.batch_size} batches of {run.config.batch_size}"
        )
    run = dataclasses.replace(run, feed=_feed(run, train, size, run.config.seed))
    at = begin(run)
    while at.step < MOST_STEPS:
        at.window = run.no_metrics()
        figures = advance(run, at, at.step + STEPS)
        console.line(
            f"step {at.step}  loss {figures.loss:.6f}  accuracy {figures.accuracy:.4f}"
        )
        if not math.isfinite(figures.loss):
            break
        if figures.loss < LEARNT:
            console.line(f"learnt by heart: {size} examples in {at.step} steps")
            return True
    if figures.accuracy == 1:
        console.line(
            f"learnt, slowly: all of {size} examples are recognised, but the loss is "
            f"not under {LEARNT:g}; a larger optimizer.learning_rate would be sooner"
        )
        return True
    console.line(
        f"not learnt by heart: {size} examples in {at.step} steps; look at the model, "
        "the loss and optimizer.learning_rate"
    )
    return False
