"""Inputs, options and pooling that the models share."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Shaped

from flaxmnist.core import mnist
from flaxmnist.core.batch import as_images
from flaxmnist.core.nn import avg_pool, max_pool
from flaxmnist.options import OptionType, optional

Images = Shaped[Array | np.ndarray, "batch ..."]
Logits = Float[Array, "batch classes"]
# One or several whole numbers; a model stores them as a tuple.
Sizes = Any

POOLS = {"max": max_pool, "average": avg_pool}


def scale(images: Images) -> Float[Array, "batch height width channels"]:
    """Returns images as float32 in [0, 1]. No other function scales pixels.

    Args:
      images: uint8 or floating point, `[batch, height, width, channels]`; or MNIST's,
        in a form that :func:`flaxmnist.core.batch.as_images` accepts.

    Raises:
      UserError: the images have another shape or dtype.
    """
    shape = images.shape[1:]
    images = as_images(images, shape if len(shape) == 3 else mnist.IMAGE_SHAPE)
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255
    return images.astype(jnp.float32)


class BatchNorm(nn.Module):
    """Batch normalization (Ioffe and Szegedy, 2015), then max pooling of 2×2 pixels.

    The values, parameters and statistics are those of `linen.BatchNorm` and `max_pool`.
    Normalization by a positive scale keeps the order of pixels, and by a negative one
    reverses it, so only the pixels that pooling takes are normalized. The class has the
    name of linen's because linen names the parameters by it.
    """

    use_running_average: bool
    momentum: float = nn.BatchNorm.momentum
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch out_height out_width channels"]:
        """Returns the maxima, normalized by the statistics of all pixels."""
        count = x.shape[-1]
        averages = (
            self.variable("batch_stats", "mean", jnp.zeros, count),
            self.variable("batch_stats", "var", jnp.ones, count),
        )
        scale = self.param("scale", nn.initializers.ones, (count,))
        bias = self.param("bias", nn.initializers.zeros, (count,))
        # Before the statistics: XLA then sums the gradients of `x` in one pass.
        sign = _by_channel(jnp.where(scale < 0, -1.0, 1.0).astype(x.dtype))
        largest = sign * max_pool(sign * x, (2, 2), (2, 2))
        if self.use_running_average:
            mean, var = (average.value for average in averages)
        else:
            mean, var = _statistics(x)
            if not self.is_initializing():
                keep = self.momentum
                for average, new in zip(averages, (mean, var), strict=True):
                    average.value = keep * average.value + (1 - keep) * new
        factor = lax.rsqrt(var + nn.BatchNorm.epsilon) * scale
        centred = largest - _by_channel(mean)
        normalized = centred * _by_channel(factor) + _by_channel(bias)
        return normalized.astype(self.dtype or normalized.dtype)


def _statistics(x: Array) -> tuple[Array, Array]:
    """Returns mean and variance of each channel, float32 or wider."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = x.mean((0, 1, 2))
    return mean, jnp.maximum(0, (x * x).mean((0, 1, 2)) - mean * mean)


def _by_channel(values: Array | np.ndarray) -> Array:
    return jnp.reshape(values, (1, 1, 1, -1))


def flat(x: Array) -> Array:
    """Returns `[batch, values]`."""
    return x.reshape(x.shape[0], -1)


def _floating(dtype: Any) -> Any:
    if dtype is None or not jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
        raise TypeError
    return dtype


DTYPE = optional(
    OptionType("a floating-point type such as 'float32' or 'bfloat16'", _floating)
)
DTYPE_HELP = (
    "Type that layers compute in; None: the type of their inputs and parameters. "
    "Parameters, batch statistics and logits are always float32."
)
