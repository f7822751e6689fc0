"""Compilation of the programs of a run before their first use."""

import dataclasses
import warnings

from flaxmnist.core.steps import all_finite, eval_steps, train_steps
from flaxmnist.training.experiment import Experiment
from flaxmnist.training.observe import observed_norms
from flaxmnist.training.progress import Progress


def compile_training(experiment: Experiment, progress: Progress) -> Progress:
    """Compiles the training program by dispatching zero steps."""
    batches, _ = next(experiment.feed.chunks(progress.step, progress.step + 1))
    with warnings.catch_warnings():
        # An earlier run in this process built an optimizer of the same code.
        warnings.filterwarnings("ignore", "train_step compiles again")
        state, metrics = train_steps(
            progress.state, progress.metrics_since_log, batches, experiment.put(0)
        )
    return dataclasses.replace(progress, state=state, metrics_since_log=metrics)


def compile_reports(experiment: Experiment, progress: Progress) -> None:
    """Compiles the programs of logs and evaluations by running them once."""
    zero = experiment.put(0)
    observed_norms(experiment, progress.state, progress.step)
    batches, _ = next(experiment.eval_feeds["validation"].chunks(0, 1))
    eval_steps(progress.state, experiment.no_metrics(), batches, zero, zero)
    all_finite(progress.state)
    experiment.schedule(zero)
