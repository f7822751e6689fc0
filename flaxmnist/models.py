"""Models that map images to logits."""

from flaxmnist.core.models import CNN, MLP, ConvNet, SoftmaxRegression, scale

__all__ = [
    "CNN",
    "MLP",
    "ConvNet",
    "SoftmaxRegression",
    "scale",
]
