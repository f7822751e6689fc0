"""The networks: images in, ten logits out."""

import dataclasses
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Num

from flaxmnist import ops
from flaxmnist.checks import UserError, check, did_you_mean, real, sizes

NUM_CLASSES = 10


def scale(images: Num[Array, "batch ..."]) -> Float[Array, "batch 28 28 1"]:
    """Brings images to float32 in [0, 1]: the one place where pixels are scaled.

    Args:
      images: uint8 in [0, 255], or floating point that is in [0, 1] already.
    """
    if jnp.issubdtype(images.dtype, jnp.integer):
        images = images.astype(jnp.float32) / 255
    return images.astype(jnp.float32).reshape(-1, 28, 28, 1)


class SoftmaxRegression(nn.Module):
    """One dense layer from zero: "MNIST for ML Beginners"."""

    @nn.compact
    def __call__(
        self, images: Num[Array, "batch ..."], *, train: bool = False
    ) -> Float[Array, "batch 10"]:
        """Returns the logits."""
        pixels = scale(images).reshape(-1, 28 * 28)
        return nn.Dense(NUM_CLASSES, kernel_init=nn.initializers.zeros)(pixels)


class MLP(nn.Module):
    """Dense layers with ReLU: "TensorFlow Mechanics 101".

    Attributes:
      hidden: width of each hidden layer.
      dropout_rate: share of each hidden layer's activations dropped in training.
    """

    hidden: tuple[int, ...] = (128, 32)
    dropout_rate: float = 0.0

    @nn.compact
    def __call__(
        self, images: Num[Array, "batch ..."], *, train: bool = False
    ) -> Float[Array, "batch 10"]:
        """Returns the logits."""
        x = scale(images).reshape(-1, 28 * 28)
        for width in self.hidden:
            x = nn.relu(nn.Dense(width)(x))
            x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(NUM_CLASSES)(x)


class CNN(nn.Module):
    """Convolution, ReLU and 2×2 max-pool, repeated; then dense layers.

    The defaults are the network of "A Guide to TF Layers".

    Attributes:
      features: channels of each convolution.
      kernel_size: height and width of every kernel.
      hidden: width of each dense layer under the logits.
      dropout_rate: share of each dense layer's activations dropped in training.
    """

    features: tuple[int, ...] = (32, 64)
    kernel_size: tuple[int, int] = (5, 5)
    hidden: tuple[int, ...] = (1024,)
    dropout_rate: float = 0.4

    @nn.compact
    def __call__(
        self, images: Num[Array, "batch ..."], *, train: bool = False
    ) -> Float[Array, "batch 10"]:
        """Returns the logits."""
        # XLA's own convolution is the fastest everywhere until it is differentiated.
        conv = ops.conv if train else lax.conv_general_dilated
        x = scale(images)
        for channels in self.features:
            x = nn.Conv(channels, self.kernel_size, conv_general_dilated=conv)(x)
            x = ops.max_pool(nn.relu(x))
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = nn.relu(nn.Dense(width)(x))
            x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(NUM_CLASSES)(x)


MODELS: dict[str, type[nn.Module]] = {
    "softmax": SoftmaxRegression,
    "mlp": MLP,
    "cnn": CNN,
}
_KINDS = {
    "features": sizes(),
    "kernel_size": sizes(2),
    "hidden": sizes(),
    "dropout_rate": real(0, below=1),
}


def options(name: Any, **given: Any) -> dict[str, Any]:
    """Returns every option of the model `name`, checked; the defaults where not given.

    Raises:
      UserError: the model or an option is unknown, or a value is not possible.
    """
    if not isinstance(name, str) or name not in MODELS:
        raise UserError(f"no model {name!r}{did_you_mean(name, MODELS)}")
    defaults = {
        field.name: cast(Any, field.default)
        for field in dataclasses.fields(MODELS[name])
        if field.name in _KINDS
    }
    kinds = {option: _KINDS[option] for option in defaults}
    checked = defaults | check("model", given, kinds)
    if 28 >> len(checked.get("features", ())) == 0:
        raise UserError(
            f"model.features={checked['features']}: expected at most 4 convolutions, "
            "each of which halves the 28 pixels"
        )
    return checked


def build(name: Any, **given: Any) -> nn.Module:
    """Returns the model `name`; see :func:`options` for what it takes and raises."""
    return MODELS[name](**options(name, **given))


def num_parameters(params: Any) -> int:
    """Returns how many numbers a tree of parameters holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
