"""Functional MNIST training in JAX and Flax: pure, sharded, resumable."""

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
    "predict_step",
    "train_and_evaluate",
    "train_step",
    "train_steps",
]
