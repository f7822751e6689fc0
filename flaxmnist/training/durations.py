"""Durations of a run in steps: of the training, of its schedule, between events."""

import dataclasses

import optax

from flaxmnist.config import Config, as_dict
from flaxmnist.core import optim
from flaxmnist.data.order import Epochs
from flaxmnist.errors import UserError
from flaxmnist.options import MAX_STEPS, to_steps


@dataclasses.dataclass(frozen=True)
class Interval:
    """An event every `steps` steps, counted from the step `start`."""

    steps: int
    start: int = 0

    def following(self, step: int) -> int:
        """Returns the step of the first event after `step`."""
        return step + self.steps - (step - self.start) % self.steps


def intervals(config: Config, epochs: Epochs) -> dict[str, Interval]:
    """Returns the interval between two events, by event."""
    options = {
        "log": config.log_every,
        "eval": config.eval_every,
        "checkpoint": config.checkpoint_every,
    }
    if config.log_tensors:
        options["tensors"] = config.every_n_steps
    return {
        event: Interval(
            to_steps(duration, epochs.steps_per_epoch),
            0 if isinstance(duration, int) else epochs.start,
        )
        for event, duration in options.items()
    }


def make_optimizer(
    config: Config, epochs: Epochs
) -> tuple[optax.GradientTransformation, optax.Schedule, int]:
    """Returns the optimizer, its schedule, and the number of steps of the training.

    Args:
      config: of the run.
      epochs: of the training, by step.

    Raises:
      UserError: there would be too many steps.
    """
    total_steps = config.num_steps or epochs.step_at(f"{config.num_epochs} epochs")
    if total_steps >= MAX_STEPS:
        raise UserError(
            f"num_epochs={config.num_epochs} are {total_steps:,} steps: expected fewer "
            f"than {MAX_STEPS:,}"
        )
    optimizer = as_dict(config.optimizer)
    warmup = optimizer.pop("warmup")
    tx, schedule = optim.build(
        **optimizer,
        warmup_steps=epochs.step_at(warmup) if warmup else 0,
        total_steps=total_steps,
        steps_per_epoch=epochs.steps_per_epoch,
    )
    return tx, schedule, total_steps


def plain_from(config: Config, epochs: Epochs, total_steps: int) -> int | None:
    """Returns the step from which on the training images are not augmented.

    Raises:
      UserError: it would be before the first step.
    """
    if (length := config.augment.stop_before_end) is None:
        return None
    step = total_steps - to_steps(length, epochs.steps_per_epoch)
    if step < 1:
        raise UserError(
            f"augment.stop_before_end={length!r}: expected less than the run, "
            f"{total_steps:,} steps"
        )
    return step
