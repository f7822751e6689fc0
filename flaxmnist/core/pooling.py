"""Pooling whose training is fast on every platform."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

# Height and width.
Window = tuple[int, ...]


def _windows(images: Any, window: Window) -> Any:
    """Cuts images into windows: `[…, rows, height, columns, width, channels]`."""
    height, width = window
    *batch, rows, columns, channels = images.shape
    rows, columns = rows // height, columns // width
    return images[..., : rows * height, : columns * width, :].reshape(
        *batch, rows, height, columns, width, channels
    )


def first_maximum(parts: Sequence[Array]) -> tuple[Array, Array]:
    """Returns the maximum of several arrays, and the index of the first that has it."""
    largest = functools.reduce(jnp.maximum, parts)
    first = jnp.full(largest.shape, len(parts) - 1, jnp.uint8)
    for index in reversed(range(len(parts) - 1)):
        first = jnp.where(parts[index] == largest, jnp.uint8(index), first)
    return largest, first


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def max_pool(
    images: Shaped[Array, "*batch height width channels"], window: Window
) -> Shaped[Array, "*batch out_height out_width channels"]:
    """Takes the maximum of each window; a remainder is dropped.

    Of equal maxima the first counts, as in `nn.max_pool`. Its position is stored in a
    byte, and the gradient writes each element once. The gradient of `nn.max_pool` is a
    select-and-scatter, which is many times slower on CPU.
    """
    # Without gradients, XLA's own pooling is fastest on all platforms. The exporter to
    # ONNX replaces it by a function that takes only keywords.
    pooled: Array = nn.max_pool(images, window_shape=window, strides=window)
    return pooled


@max_pool.defjvp
def _max_pool_jvp(window: Window, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (images,), (moves,) = primals, tangents
    windows = _windows(images, window)
    largest, first = first_maximum(
        [windows[..., row, :, column, :] for row, column in np.ndindex(window)]
    )
    places = np.arange(math.prod(window), dtype=first.dtype)
    shape = (1,) * (windows.ndim - 4) + (window[0], 1, window[1], 1)
    chosen = first[..., None, :, None, :] == places.reshape(shape)
    moved = jnp.where(chosen, _windows(moves, window), 0).sum(axis=(-4, -2))
    return largest, moved


def average_pool(
    images: Float[Array, "*batch height width channels"], window: Window
) -> Float[Array, "*batch out_height out_width channels"]:
    """Takes the mean of each window; a remainder is dropped."""
    means: Array = _windows(images, window).mean(axis=(-4, -2))
    return means
