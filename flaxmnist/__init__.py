"""Functional MNIST training in JAX and Flax: pure, sharded, resumable."""

from typing import Any

from flaxmnist.checks import UserError
from flaxmnist.data import load
from flaxmnist.metrics import Metrics
from flaxmnist.models import CNN, MLP, SoftmaxRegression
from flaxmnist.state import TrainState, create_state
from flaxmnist.steps import (
    eval_step,
    eval_steps,
    loss_fn,
    predict_step,
    train_step,
    train_steps,
)
from flaxmnist.train import train_and_evaluate

__version__ = "0.1.0"

__all__ = [
    "CNN",
    "MLP",
    "Metrics",
    "SoftmaxRegression",
    "TrainState",
    "UserError",
    "create_state",
    "eval_step",
    "eval_steps",
    "load",
    "loss_fn",
    "predict_images",
    "predict_step",
    "train_and_evaluate",
    "train_step",
    "train_steps",
]


def __getattr__(name: str) -> Any:
    if name != "predict_images":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Not before it is asked for: what reads pictures takes long to import.
    from flaxmnist.predict import predict_images

    return predict_images
