"""What a run came to: the content of ``summary.json`` and the table of it."""

from collections.abc import Iterable
from typing import Any

import jax

from flaxmnist.core import models
from flaxmnist.core.state import TrainState
from flaxmnist.data import SPLITS
from flaxmnist.runtime import machine
from flaxmnist.runtime.console import Console
from flaxmnist.training.evaluate import evaluate
from flaxmnist.training.experiment import Evaluation


def describe(run: Evaluation) -> dict[str, Any]:
    """Returns configuration, data, versions and machine, as checkpoints record them."""
    dataset = run.dataset
    return {
        "config": run.config.to_dict(),
        "dataset": {
            "name": dataset.name,
            "source": dataset.source,
            "counts": dataset.counts,
            "fingerprint": dataset.fingerprint,
            "fingerprints": dataset.fingerprints,
        },
        "total_steps": run.total_steps,
        "versions": machine.versions(machine.PACKAGES),
        "machine": machine.describe(),
    }


def evaluate_splits(
    run: Evaluation, state: TrainState, console: Console, splits: Iterable[str] = SPLITS
) -> dict[str, dict[str, Any]]:
    """Returns loss, accuracy and count of each of the splits."""
    found = {}
    for split in splits:
        feed = run.eval_feeds[split]
        with console.evaluating(split, feed.steps_per_epoch) as advance:
            metrics = evaluate(state, feed, run.everywhere, advance)
        found[split] = metrics.compute()
    return found


def print_table(console: Console, summary: dict[str, Any]) -> None:
    """Prints loss, accuracy and count of the three splits."""
    dataset = summary["dataset"]
    console.line()
    console.line(
        f"{summary['model']['name']} ({summary['model']['parameters']:,} parameters), "
        f"step {summary['evaluated_step']}, on {dataset['name']} ({dataset['source']})"
    )
    console.line(f"{'':<12}{'loss':>8}  {'accuracy':>8}  {'count':>7}")
    for split in SPLITS:
        row = summary[split]
        figures = f"{row['loss']:>8.4f}  {row['accuracy']:>8.2%}  {row['count']:>7,}"
        console.line(f"{split:<12}{figures}")


def summarize(
    run: Evaluation, state: TrainState, step: int, evaluated_step: int, console: Console
) -> dict[str, Any]:
    """Evaluates the three splits and returns all that is known of the run.

    Args:
      run: what evaluates the state.
      state: the state to evaluate.
      step: the last step trained.
      evaluated_step: the step of `state`.
      console: shows how far it is.
    """
    device = jax.devices()[0]
    return {
        **describe(run),
        "model": {
            "name": run.config.model.name,
            "parameters": models.num_parameters(state.params),
        },
        "step": step,
        "evaluated_step": evaluated_step,
        **evaluate_splits(run, state, console),
        "devices": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": run.everywhere.mesh.size,
        },
    }
