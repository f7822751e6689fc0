"""Checks of a configuration before it is trained; nothing is written."""

import dataclasses
import math
import time
from typing import Any

from flaxmnist.config import Config, override
from flaxmnist.core import models
from flaxmnist.data import Split
from flaxmnist.data.feeds import FEEDS, Feed
from flaxmnist.errors import UserError
from flaxmnist.runtime.console import Console
from flaxmnist.training.experiment import Experiment
from flaxmnist.training.resume import begin
from flaxmnist.training.summary import evaluate_splits

# `overfit` succeeds below this loss, and gives up after this number of steps.
TARGET_LOSS, MAX_STEPS = 1e-3, 2_000
_STEPS_PER_LINE = 50


def _feed(
    experiment: Experiment, split: Split, count: int, seed: int | None = None
) -> Feed:
    """Returns a feed of the first `count` examples: one batch, or shuffled batches."""
    few = Split(split.images[:count], split.labels[:count])
    config, mesh = experiment.config, experiment.layout.mesh
    parts = mesh.shape["data"]
    size = config.batch_size if seed is not None else count
    return FEEDS[config.data.placement](few, -(-size // parts) * parts, mesh, seed)


def dry_run(config: Config) -> None:
    """Builds what `config` describes, trains a step and evaluates a batch.

    Raises:
      UserError: the options, the devices or the data do not fit together.
    """
    console = Console()
    experiment = Experiment.build(config)
    config, dataset = experiment.config, experiment.dataset
    progress = begin(experiment)
    console.line(
        f"{config.model.name} ({models.num_parameters(progress.state.params):,} "
        f"parameters), on {dataset.name} ({dataset.source}), "
        f"{experiment.total_steps:,} steps of {config.batch_size}"
    )
    started = time.perf_counter()
    progress = experiment.advance(progress, 1)
    seconds = time.perf_counter() - started
    console.line(
        f"a training step: loss {progress.figures.loss:.4f} ({seconds:.1f} s, "
        "compilation included)"
    )
    count = min(config.eval_batch_size, len(dataset.validation))
    feed = _feed(experiment, dataset.validation, count)
    small = dataclasses.replace(experiment, eval_feeds={"validation": feed})
    splits = ("validation",)
    found = evaluate_splits(small, progress.state, console, splits)["validation"]
    console.line(
        f"a batch evaluated: loss {found.loss:.4f}, "
        f"accuracy {found.accuracy:.2%} of {found.count}"
    )
    console.line("nothing was written; without --dry_run it trains")


def overfit(config: Config, batches: int) -> bool:
    """Trains on a few batches only, without dropout or learning-rate schedule.

    A model and an optimizer that cannot memorize one batch cannot learn: try this first
    with a new model.

    Args:
      config: the configuration to check.
      batches: number of batches, the first ones of the training split.

    Returns:
      whether the loss fell below `TARGET_LOSS` or all examples are classified
      correctly.

    Raises:
      UserError: the options, the devices or the data do not fit together, or the
        training split has fewer batches.
    """
    console = Console()
    experiment, size = _few_batches(config, batches)
    progress = begin(experiment)
    while progress.step < experiment.total_steps:
        progress = dataclasses.replace(
            progress, metrics_since_log=experiment.no_metrics()
        )
        progress = experiment.advance(progress, _STEPS_PER_LINE)
        figures, step = progress.figures, progress.step
        console.line(
            f"step {step}  loss {figures.loss:.6f}  accuracy {figures.accuracy:.4f}"
        )
        if not math.isfinite(figures.loss):
            break
        if figures.loss < TARGET_LOSS:
            console.line(f"memorized: {size} examples in {step} steps")
            return True
    if progress.figures.accuracy == 1:
        console.line(
            f"memorized slowly: all {size} examples are classified correctly, but the "
            f"loss is not below {TARGET_LOSS:g}; a larger optimizer.learning_rate "
            "trains faster"
        )
        return True
    console.line(
        f"not memorized: {size} examples in {progress.step} steps; check the model, "
        "the loss and optimizer.learning_rate"
    )
    return False


def _few_batches(config: Config, batches: int) -> tuple[Experiment, int]:
    """Returns an experiment on the first batches, and their number of examples."""
    changes: dict[str, Any] = {
        "num_steps": MAX_STEPS,
        "optimizer.schedule": "constant",
        "optimizer.warmup": None,
        "optimizer.decay_rate": None,
        "augment.stop_before_end": None,
    }
    for path in ("model.dropout_rate", "augment.outliers"):
        group, name = path.split(".")
        if hasattr(getattr(config, group), name):
            changes[path] = 0.0
    config = override(config, changes.items())
    experiment = Experiment.build(config)
    config, train = experiment.config, experiment.dataset.train
    size = batches * config.batch_size
    if size > len(train):
        raise UserError(
            f"--overfit {batches}: expected at most "
            f"{len(train) // config.batch_size} batches of {config.batch_size}"
        )
    feed = _feed(experiment, train, size, config.seed)
    return dataclasses.replace(experiment, feed=feed, every={}), size
