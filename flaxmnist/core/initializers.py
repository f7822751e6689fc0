"""Kernel initializers by name."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax.linen import initializers
from jaxtyping import Array


def truncated_normal(stddev: float | None) -> initializers.Initializer:
    """Returns TensorFlow's truncated normal initializer.

    Values beyond two standard deviations are drawn again, so the standard deviation of
    the result is about 0.88 `stddev`.

    Args:
      stddev: the standard deviation before truncation; 1 / sqrt(fan_in) if None.
    """

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        fan_in = math.prod(shape[:-1])
        deviation = 1 / math.sqrt(fan_in) if stddev is None else stddev
        return initializers.truncated_normal(deviation)(key, shape, dtype)

    return init


# The argument is the standard deviation. Only "truncated_normal" uses it.
INITIALIZERS: dict[str, Callable[[float | None], initializers.Initializer]] = {
    "lecun_normal": lambda _: initializers.lecun_normal(),
    "glorot_uniform": lambda _: initializers.glorot_uniform(),
    "truncated_normal": truncated_normal,
}
