"""Optimizers with their learning-rate schedules, built by name."""

from flaxmnist.core.optim import *  # noqa: F403
from flaxmnist.core.optim import __all__ as __all__
