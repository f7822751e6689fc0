"""Optimizers with their learning-rate schedules, built by name."""

from flaxmnist.core.optim import build, build_schedule

__all__ = [
    "build",
    "build_schedule",
]
