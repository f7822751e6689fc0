"""Layers that end with the max pooling of 2×2 pixels; a remainder is dropped.

They have the names of linen's classes, because linen names the parameters by them.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from flaxmnist.core import ops
from flaxmnist.core.nn import max_pool


class Conv(nn.Module):
    """Convolution, then max pooling of 2×2 pixels.

    The values and parameters are those of `linen.Conv` and `max_pool`.
    """

    features: int
    kernel_size: Sequence[int]
    strides: Sequence[int] = (1, 1)
    padding: str = "SAME"
    dtype: Any = None
    kernel_init: Any = nn.Conv.kernel_init
    bias_init: Any = nn.Conv.bias_init

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch out_height out_width features"]:
        """Returns the maxima of each block of 2×2 outputs."""
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        layout = ("NHWC", "HWIO", "NHWC")
        maxima = ops.conv(
            x, kernel, self.strides, self.padding, pool=True, dimension_numbers=layout
        )
        return maxima + _by_channel(bias)


class BatchNorm(nn.Module):
    """Batch normalization (Ioffe and Szegedy, 2015), then max pooling of 2×2 pixels.

    The values, parameters and statistics are those of `linen.BatchNorm` and `max_pool`.
    Normalization by a positive scale keeps the order of pixels, and by a negative one
    reverses it, so only the pixels that pooling takes are normalized.
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
            self.variable("batch_stats", "mean", jnp.zeros, count, jnp.float32),
            self.variable("batch_stats", "var", jnp.ones, count, jnp.float32),
        )
        scale = self.param("scale", nn.initializers.ones, (count,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (count,), jnp.float32)
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
    return jnp.asarray(values).reshape(1, 1, 1, -1)
