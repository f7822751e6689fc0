"""Convolution as one matrix product of patches and the kernel (im2col).

Chellapilla et al., 2006, "High Performance Convolutional Neural Networks for Document
Processing".
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flaxmnist.core.pooling import first_maximum

# Channels for which `conv_max_pool` is used: those of gray and colour images.
MAX_CHANNELS = 4


def pools_faster(
    kernel: Array, strides: Sequence[int], padding: Sequence[tuple[int, int]]
) -> bool:
    """Returns whether :func:`conv_max_pool` supports this convolution and is faster."""
    height, width, channels, _ = kernel.shape
    return (
        channels <= MAX_CHANNELS
        # With smaller kernels, most products would be with zeros.
        and min(height, width) >= 3
        and all(stride == 1 for stride in strides)
        and all(side >= 0 for pair in padding for side in pair)
    )


def _patches(
    padded: Array, size: Sequence[int], strides: Sequence[int], counts: Sequence[int]
) -> Array:
    """Returns the patches of padded images as rows `[patches, pixels * channels]`.

    Args:
      padded: `[batch, height, width, channels]`.
      size: height and width of a patch.
      strides: vertical and horizontal distance of patches.
      counts: number of patches in a column and in a row.
    """
    sh, sw = strides
    height, width = counts
    pieces = [
        padded[:, i : i + (height - 1) * sh + 1 : sh, j : j + (width - 1) * sw + 1 : sw]
        for i in range(size[0])
        for j in range(size[1])
    ]
    rows = jnp.concatenate(pieces, axis=-1)
    return rows.reshape(-1, rows.shape[-1])


def conv(
    images: Float[Array, "batch height width cin"],
    kernel: Float[Array, "kh kw cin cout"],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    precision: Any = None,
) -> Float[Array, "batch out_height out_width cout"]:
    """Convolves by one matrix product of all patches and the kernel."""
    kh, kw, _, cout = kernel.shape
    padded = jnp.pad(images, ((0, 0), *padding, (0, 0)))
    counts = [
        (side - length) // stride + 1
        for side, length, stride in zip(
            padded.shape[1:3], (kh, kw), strides, strict=True
        )
    ]
    patches = _patches(padded, (kh, kw), strides, counts)
    out = jnp.matmul(patches, kernel.reshape(-1, cout), precision=precision)
    return out.reshape(images.shape[0], *counts, cout)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv_max_pool(
    images: Float[Array, "batch height width cin"],
    kernel: Float[Array, "kh kw cin cout"],
    padding: tuple[tuple[int, int], ...],
    precision: Any = None,
) -> Float[Array, "batch out_height out_width cout"]:
    """Convolves with stride 1 and takes the maximum of each block of 2×2 outputs.

    One convolution with stride 2 computes the four outputs of a block as four groups of
    channels; its kernel contains `kernel` at four offsets. There are a fourth of the
    patches, and maxima are taken of contiguous memory. A remainder is dropped.
    """
    pooled: Array = _forward(images, kernel, padding, precision)[0]
    return pooled


# Row and column of the outputs of a window.
_PLACES = [(0, 0), (0, 1), (1, 0), (1, 1)]


def _pooled_size(images: Array, size: Sequence[int], padding: Any) -> list[int]:
    """Returns height and width of the maxima, for a kernel of that size."""
    return [
        (side + sum(pad) - length + 1) // 2
        for side, pad, length in zip(images.shape[1:3], padding, size, strict=True)
    ]


def _window_patches(images: Array, size: Sequence[int], padding: Any) -> Array:
    """Returns the pixels that each window of 2×2 outputs depends on, as rows."""
    padded = jnp.pad(images, ((0, 0), *padding, (0, 0)))
    counts = _pooled_size(images, size, padding)
    return _patches(padded, [length + 1 for length in size], (2, 2), counts)


def _four_kernels(kernel: Array) -> Array:
    """Returns the kernel of a window's outputs `[(kh + 1)(kw + 1) cin, 4 cout]`."""
    placed = [
        jnp.pad(kernel, ((row, 1 - row), (column, 1 - column), (0, 0), (0, 0)))
        for row, column in _PLACES
    ]
    return jnp.concatenate(placed, axis=-1).reshape(-1, 4 * kernel.shape[-1])


def _forward(images: Array, kernel: Array, padding: Any, precision: Any) -> Any:
    *size, _, cout = kernel.shape
    patches = _window_patches(images, size, padding)
    outputs = jnp.matmul(patches, _four_kernels(kernel), precision=precision)
    largest, first = first_maximum(jnp.split(outputs, 4, axis=-1))
    maxima = largest.reshape(
        images.shape[0], *_pooled_size(images, size, padding), cout
    )
    return maxima, (images, kernel, patches, first)


def _backward(padding: Any, precision: Any, residuals: Any, grads: Array) -> Any:
    images, kernel, patches, first = residuals
    *size, _, cout = kernel.shape
    rows = grads.reshape(-1, cout)
    of_outputs = jnp.concatenate(
        [jnp.where(first == place, rows, 0) for place in range(4)], axis=-1
    )
    of_patches = jnp.matmul(of_outputs, _four_kernels(kernel).T, precision=precision)
    of_kernels = jnp.matmul(patches.T, of_outputs, precision=precision)
    cut = functools.partial(_window_patches, size=size, padding=padding)
    return (
        *jax.linear_transpose(cut, images)(of_patches),
        *jax.linear_transpose(_four_kernels, kernel)(of_kernels),
    )


conv_max_pool.defvjp(_forward, _backward)
