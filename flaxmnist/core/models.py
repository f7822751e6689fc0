"""Models that map images to logits."""

import math
import operator
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from flaxmnist.core import mnist, ops, pooled
from flaxmnist.core.batch import MAX_SIDE, ImageShape
from flaxmnist.core.convnet import ConvNet
from flaxmnist.core.initializers import INITIALIZERS
from flaxmnist.core.layers import (
    DTYPE,
    DTYPE_HELP,
    POOLS,
    Images,
    Logits,
    Sizes,
    flat,
    scale,
)
from flaxmnist.core.nn import Conv, avg_pool
from flaxmnist.core.parts import in_order, num_devices, num_parts
from flaxmnist.errors import UserError, did_you_mean, shown
from flaxmnist.extensions import ExtensionPoint
from flaxmnist.options import (
    boolean,
    canonicalize,
    check,
    one_of,
    option,
    optional,
    real,
    sizes,
)

__all__ = [
    "CNN",
    "MLP",
    "ConvNet",
    "SoftmaxRegression",
    "scale",
]

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": nn.relu,
    "sigmoid": nn.sigmoid,
    "tanh": nn.tanh,
    "softplus": nn.softplus,
}
# JAX before 0.12 computes small products on one thread, so small parts are slow there.
CONVOLVES_IN_PARTS = jax.__version_info__ >= (0, 12)
# Maximum bytes of outputs of the first convolution in a part, on each device.
PART_BYTES = 8 << 20
# XLA compiles the convolutions once for each part, which takes long for many parts.
MAX_PARTS = 8


class SoftmaxRegression(nn.Module):
    """One dense layer, initialized with zeros, as in "MNIST for ML Beginners".

    Raises:
      UserError: an option has an invalid value.
    """

    independent_examples: ClassVar[bool] = True
    dtype: Any = option(None, DTYPE, DTYPE_HELP)
    num_classes: int = mnist.NUM_CLASSES

    def __post_init__(self) -> None:
        canonicalize("model", self)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Logits:
        """Returns the logits."""
        return nn.Dense(
            self.num_classes,
            dtype=self.dtype,
            kernel_init=nn.initializers.zeros,
            dot_general=ops.dot_general,
        )(flat(scale(images)))


class MLP(nn.Module):
    """Dense layers, as in "TensorFlow Mechanics 101".

    The declaration of each attribute describes it.

    Raises:
      UserError: an option has an invalid value.
    """

    independent_examples: ClassVar[bool] = True
    hidden: Sizes = option(
        (128, 32), sizes(), "Width of each hidden layer; a number is one layer."
    )
    dropout_rate: float = option(
        0.0, real(0, below=1), "Fraction of hidden activations dropped in training."
    )
    activation: str = option(
        "relu", one_of(ACTIVATIONS), "Activation function of every hidden layer."
    )
    batch_norm: bool = option(
        False, boolean, "Whether to normalize each hidden layer before its activation."
    )
    kernel_init: str = option(
        "lecun_normal", one_of(INITIALIZERS), "Initializer of every kernel."
    )
    kernel_stddev: float | None = option(
        None,
        optional(real(0, above=True, below=1_000)),
        "Standard deviation of truncated_normal; None: 1 / sqrt(fan_in).",
    )
    bias_init: float = option(
        0.0, real(-1_000, below=1_000), "Initial value of every bias."
    )
    dtype: Any = option(None, DTYPE, DTYPE_HELP)
    num_classes: int = mnist.NUM_CLASSES

    def __post_init__(self) -> None:
        canonicalize("model", self)
        if self.kernel_stddev is not None and self.kernel_init != "truncated_normal":
            raise UserError(
                f"model.kernel_stddev={self.kernel_stddev} has no effect with "
                f"model.kernel_init={self.kernel_init!r}; expected 'truncated_normal'"
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Logits:
        """Returns the logits."""
        return self._classify(flat(scale(images)), train)

    @nn.nowrap
    def _layer(self) -> dict[str, Any]:
        return {
            "dtype": self.dtype,
            "kernel_init": INITIALIZERS[self.kernel_init](self.kernel_stddev),
            "bias_init": nn.initializers.constant(self.bias_init),
        }

    @nn.nowrap
    def _activate(self, x: Array, train: bool) -> Array:
        if self.batch_norm:
            x = nn.BatchNorm(use_running_average=not train, dtype=self.dtype)(x)
        activated: Array = ACTIVATIONS[self.activation](x)
        return activated

    @nn.nowrap
    def _classify(self, x: Array, train: bool) -> Array:
        for width in self.hidden:
            x = self._activate(nn.Dense(width, **self._layer())(x), train)
            x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes, dot_general=ops.dot_general, **self._layer())(
            x
        )


class CNN(MLP):
    """Convolution, activation and 2×2 pooling, repeated; then the layers of an `MLP`.

    The default layers are those of "A Guide to TF Layers". On CPU, training may call
    the convolutions once for each of several parts of a batch.

    Raises:
      UserError: an option has an invalid value, or a convolution has no output.
    """

    independent_examples: ClassVar[bool] = True
    hidden: Sizes = (1024,)
    dropout_rate: float = 0.4
    features: Sizes = option(
        (32, 64), sizes(), "Channels of each convolution; a number is one convolution."
    )
    kernel_size: Sizes = option(
        (5, 5), sizes(2, most=MAX_SIDE), "Height and width of every convolution kernel."
    )
    strides: Sizes = option(
        (1, 1),
        sizes(2, most=MAX_SIDE),
        "Vertical and horizontal stride of convolutions.",
    )
    padding: str = option(
        "SAME", one_of(("SAME", "VALID")), "Padding of every convolution."
    )
    pool: str | None = option(
        "max", optional(one_of(POOLS)), "Pooling of 2×2 pixels after every convolution."
    )

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Logits:
        """Returns the logits."""
        x = scale(images)
        self.check_fits(x.shape[1:3])
        # Every activation function is increasing, so maxima remain maxima.
        pools = self.pool == "max"
        layer = pooled.Conv if pools and not self.batch_norm else Conv
        convolutions = [
            layer(
                channels,
                self.kernel_size,
                self.strides,
                self.padding,
                **self._layer(),
            )
            for channels in self.features
        ]

        def convolve(x: Array) -> Array:
            for convolution in convolutions:
                x = convolution(x)
                if pools and self.batch_norm:
                    x = pooled.BatchNorm(not train, dtype=self.dtype)(x)
                    x = ACTIVATIONS[self.activation](x)
                else:
                    x = self._activate(x, train)
                if self.pool == "average":
                    x = avg_pool(x, (2, 2), (2, 2))
            return flat(x)

        parts = self._num_parts(x) if train and not self.is_initializing() else 1
        return self._classify(in_order(convolve, x, parts), train)

    @nn.nowrap
    def _num_parts(self, images: Array) -> int:
        """Returns in how many parts to convolve a batch in training.

        On CPU a whole batch takes longer, because each layer reads the outputs of the
        previous one from memory. Batch normalization needs the whole batch.
        """
        if self.batch_norm or not CONVOLVES_IN_PARTS or jax.default_backend() != "cpu":
            return 1
        count, height, width, _ = images.shape
        outputs = height * width // math.prod(self.strides) * sum(self.features[:1])
        size = count * outputs * jnp.dtype(self.dtype or images.dtype).itemsize
        parts = num_parts(count, size, PART_BYTES, num_devices(count))
        return parts if parts is not None and parts <= MAX_PARTS else 1

    @nn.nowrap
    def check_fits(self, sides: tuple[int, ...]) -> None:
        """Raises UserError if a convolution does not fit images of that size."""
        height, width = sides
        for name in ("kernel_size", "strides"):
            if any(map(operator.gt, getattr(self, name), sides)):
                raise UserError(
                    f"model.{name}={getattr(self, name)}: expected at most {sides}, "
                    f"for images of {height}×{width} pixels"
                )
        for kernel, stride, size in zip(
            self.kernel_size, self.strides, sides, strict=True
        ):
            for layer, _ in enumerate(self.features, 1):
                places = size if self.padding == "SAME" else size - kernel + 1
                size = -(-places // stride) // (2 if self.pool else 1)
                if size < 1:
                    raise UserError(
                        f"model.features={self.features}: convolution {layer} has no "
                        f"output for {height}×{width} pixels; expected fewer "
                        "convolutions, padding 'SAME', smaller strides, or pool None"
                    )


MODELS: dict[str, type[nn.Module]] = {
    "softmax": SoftmaxRegression,
    "mlp": MLP,
    "cnn": CNN,
    "convnet": ConvNet,
}


# The data decide image shape and number of classes, and `precision` the dtype.
POINT = ExtensionPoint(MODELS, filled=("dtype", "image_shape", "num_classes", "parent"))


def build(
    name: Any,
    *,
    image_shape: ImageShape = mnist.IMAGE_SHAPE,
    num_classes: int = mnist.NUM_CLASSES,
    dtype: Any = None,
    **given: Any,
) -> nn.Module:
    """Returns the model `name`, which computes in `dtype`.

    Args:
      name: one of `MODELS`, or the specification of a function or class that returns a
        model, such as ``"my_models:ResNet"``.
      image_shape: height, width and channels of the images; passed if the callable
        takes it.
      num_classes: number of logits; passed if the callable takes it.
      dtype: type that layers compute in; passed if the callable takes it.
      **given: further options.

    Raises:
      UserError: the model or an option is unknown, an option has an invalid value, or
        the images are too small for the model.
    """
    name = check("model", {"name": name}, {"name": POINT})["name"]
    for key in given.keys() - (known := POINT.options(name)).keys():
        raise UserError(f"unknown option 'model.{key}'{did_you_mean(key, known)}")
    model = POINT.build(
        name, given, image_shape=image_shape, num_classes=num_classes, dtype=dtype
    )
    if not isinstance(model, nn.Module):
        raise UserError(
            f"model.name={name!r} returned {shown(model)}; expected a flax.linen module"
        )
    if isinstance(model, CNN | ConvNet):
        model.check_fits(image_shape[:2])
    return model


def num_parameters(params: Any) -> int:
    """Returns the total number of values in a tree of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
