"""Compilation of the programs of a run before their first use."""

import dataclasses
import warnings

from flaxmnist.core.steps import all_finite, eval_steps
from flaxmnist.training import programs
from flaxmnist.training.experiment import Experiment
from flaxmnist.training.observe import observed_norms
from flaxmnist.training.progress import Progress


def compile_training(experiment: Experiment, progress: Progress) -> Progress:
    """Compiles the training program by dispatching zero steps."""
    batches, _ = next(experiment.feed.chunks(progress.step, progress.step + 1))
    with warnings.catch_warnings():
        # An earlier run in this process built an optimizer of the same code.
        warnings.filterwarnings("ignore", "train_step compiles again")
        state, metrics = experiment.train_steps(
            progress.state, progress.metrics_since_log, batches, 0
        )
    return dataclasses.replace(progress, state=state, metrics_since_log=metrics)


def compile_reports(experiment: Experiment, progress: Progress) -> None:
    """Compiles the programs of logs and evaluations by running them once."""
    zero, no_metrics = experiment.put(0), experiment.no_metrics()
    observed_norms(experiment, progress.state, progress.step)
    batches, _ = next(experiment.eval_feeds["validation"].chunks(0, 1))
    programs.call(
        eval_steps, no_metrics, progress.state, no_metrics, batches, zero, zero
    )
    programs.call(all_finite, zero, progress.state)
    experiment.schedule(zero)
