"""Computes the summary of a run and prints it as a table."""

from collections.abc import Iterable

import jax

from flaxmnist.config import as_dict, sources
from flaxmnist.core import models
from flaxmnist.core.calibration import energy_limit, fit_temperature
from flaxmnist.core.ensemble import name_of
from flaxmnist.core.state import TrainState
from flaxmnist.data import SPLITS
from flaxmnist.rundir.description import DatasetInfo, Description
from flaxmnist.rundir.results import DevicesInfo, Figures, ModelInfo, Summary
from flaxmnist.runtime import machine
from flaxmnist.runtime.console import Console
from flaxmnist.training.evaluate import evaluate, predict
from flaxmnist.training.experiment import Evaluation


def describe(run: Evaluation) -> Description:
    """Returns the configuration, data, versions and machine of a run."""
    dataset = run.dataset
    return Description(
        config=as_dict(run.config),
        dataset=DatasetInfo(
            dataset.name,
            dataset.source,
            dataset.counts,
            dataset.fingerprint,
            dataset.fingerprints,
            dataset.image_shape,
            dataset.class_names,
        ),
        total_steps=run.total_steps,
        versions=machine.versions(machine.PACKAGES),
        machine=machine.describe(),
        changes=run.changes,
        sources=sources(run.config),
    )


def evaluate_splits(
    run: Evaluation, state: TrainState, console: Console, splits: Iterable[str]
) -> dict[str, Figures]:
    """Evaluates a state; returns the figures of each split."""
    figures = {}
    for split in splits:
        feed = run.eval_feeds[split]
        with console.evaluating(split, feed.steps_per_epoch) as advance:
            metrics = evaluate(state, feed, run.replicated, advance)
        figures[split] = Figures.of(metrics.compute())
    return figures


def print_table(console: Console, summary: Summary, checkpoint: str = "") -> None:
    """Prints loss, accuracy and count of the three splits.

    Args:
      console: where to print.
      summary: the figures.
      checkpoint: what was evaluated; ``"step N"`` by default.
    """
    dataset = summary.dataset
    console.line()
    console.line(
        f"{summary.model.name} ({summary.model.parameters:,} parameters), "
        f"{checkpoint or f'step {summary.evaluated_step}'}, on {dataset.name} "
        f"({dataset.source})"
    )
    names = summary.test.metrics
    extra = "".join(f"  {name:>8}" for name in names)
    console.line(f"{'':<12}{'loss':>8}  {'accuracy':>8}  {'count':>7}{extra}")
    for split in SPLITS:
        figures: Figures = getattr(summary, split)
        values = "".join(
            f"  {figures.metrics[name]:>{max(len(name), 8)}.4f}" for name in names
        )
        console.line(
            f"{split:<12}{figures.loss:>8.4f}  {figures.accuracy:>8.2%}  "
            f"{figures.count:>7,}{values}"
        )


def summarize(
    run: Evaluation,
    state: TrainState,
    step: int,
    evaluated_step: int,
    console: Console,
    validation: Figures | None = None,
) -> Summary:
    """Evaluates the splits without figures and returns the summary of the run.

    Args:
      run: the data and feeds of the run.
      state: the state to evaluate.
      step: the last step trained.
      evaluated_step: the step of `state`.
      console: shows the progress.
      validation: the figures of `state` on validation, if it was evaluated there.
    """
    device = jax.devices()[0]
    figures = {} if validation is None else {"validation": validation}
    unknown = [split for split in SPLITS if split not in figures]
    figures |= evaluate_splits(run, state, console, unknown)
    outputs = predict(state, run.eval_feeds["validation"], run.replicated)
    return Summary(
        **vars(describe(run)),
        model=ModelInfo(
            name_of(state.model, run.config.model.name),
            models.num_parameters(state.params),
        ),
        step=step,
        evaluated_step=evaluated_step,
        train=figures["train"],
        validation=figures["validation"],
        test=figures["test"],
        devices=DevicesInfo(
            device.platform, device.device_kind, run.replicated.mesh.size
        ),
        temperature=fit_temperature(outputs["logits"], outputs["labels"]),
        energy_limit=energy_limit(outputs["logits"]),
    )
