"""Convolution, pooling and dense layers whose training is fast on every platform.

XLA's CPU backend differentiates a convolution inside a loop an order of magnitude
slower than outside (jax-ml/jax#12868), and a training loop that stays on the device
is such a loop. On CPU :func:`conv` therefore consists of matrix products: over tiles
where `winograd` is faster, otherwise over patches (im2col; Chellapilla et al., 2006,
"High Performance Convolutional Neural Networks for Document Processing"). On other
platforms it is XLA's own convolution.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from flaxmnist.core import winograd

# XLA computes convolutions with more taps than this.
MAX_TAPS = 81


def conv_by_matmul(
    images: Float[Array, "batch height width cin"],
    kernel: Float[Array, "kh kw cin cout"],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    precision: Any = None,
) -> Float[Array, "batch out_height out_width cout"]:
    """Convolves by one matrix product of all patches and the kernel."""
    kh, kw, cin, cout = kernel.shape
    padded = jnp.pad(images, ((0, 0), *padding, (0, 0)))
    sh, sw = strides
    height = (padded.shape[1] - kh) // sh + 1
    width = (padded.shape[2] - kw) // sw + 1
    pieces = [
        padded[:, i : i + (height - 1) * sh + 1 : sh, j : j + (width - 1) * sw + 1 : sw]
        for i in range(kh)
        for j in range(kw)
    ]
    if cin == 1:  # Long rows to copy, instead of single pixels.
        patches = jnp.stack(pieces).reshape(kh * kw, -1).T
    else:
        patches = jnp.concatenate(pieces, axis=-1).reshape(-1, kh * kw * cin)
    out = jnp.matmul(patches, kernel.reshape(-1, cout), precision=precision)
    return out.reshape(len(images), height, width, cout)


def explicit_padding(
    size: Sequence[int],
    kernel_size: Sequence[int],
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
) -> tuple[tuple[int, int], ...]:
    """Returns the (low, high) padding of each spatial dimension."""
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(size, kernel_size, strides, padding)
    # JAX before 0.8 returns NumPy integers.
    return tuple((int(low), int(high)) for low, high in padding)


def conv(
    lhs: Float[Array, "batch height width cin"],
    rhs: Float[Array, "kh kw cin_per_group cout"],
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **kwargs: Any,
) -> Float[Array, "batch out_height out_width cout"]:
    """Replaces `lax.conv_general_dilated` in a loop that is differentiated.

    The platform determines the lowering when the program is compiled. XLA computes
    dilated and grouped convolutions and those with large kernels on every platform.

    Args:
      lhs: images, channels last.
      rhs: kernel.
      window_strides: one stride a spatial dimension.
      padding: "SAME", "VALID" or a (low, high) pair a spatial dimension.
      **kwargs: the other arguments of `lax.conv_general_dilated`, as `nn.Conv`
        gives them.
    """
    precision = kwargs.get("precision")

    def xla(lhs: Array, rhs: Array) -> Array:
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **kwargs)

    def matmul(lhs: Array, rhs: Array) -> Array:
        pads = explicit_padding(lhs.shape[1:3], rhs.shape[:2], window_strides, padding)
        if winograd.is_faster(lhs, rhs, window_strides, pads):
            return winograd.conv(lhs, rhs, pads, precision)
        return conv_by_matmul(lhs, rhs, window_strides, pads, precision)

    dilations = (
        *(kwargs.get("lhs_dilation") or ()),
        *(kwargs.get("rhs_dilation") or ()),
    )
    grouped = lhs.shape[-1] != rhs.shape[-2]
    # Patches of a large kernel take long to compile and save little time.
    large = rhs.shape[0] * rhs.shape[1] > MAX_TAPS
    if grouped or large or any(dilation != 1 for dilation in dilations):
        return xla(lhs, rhs)
    out: Array = lax.platform_dependent(lhs, rhs, cpu=matmul, default=xla)
    return out


def dot_general(
    lhs: Float[Array, "batch cin"],
    rhs: Float[Array, "cin cout"],
    dimension_numbers: Any,
    **kwargs: Any,
) -> Float[Array, "batch cout"]:
    """Replaces `lax.dot_general` in a dense layer with few outputs.

    On CPU the kernel is transposed before the product, so that its gradient is a
    product with long rows instead of rows of `cout` elements. For ten outputs it takes
    a fourth of the time. The output is float32 or wider, also for half precision.

    Args:
      lhs: inputs.
      rhs: kernel.
      dimension_numbers: those of a matrix product.
      **kwargs: the other arguments of `lax.dot_general`, as `nn.Dense` gives them.
    """
    kwargs["preferred_element_type"] = jnp.promote_types(lhs.dtype, jnp.float32)

    def plain(lhs: Array, rhs: Array) -> Array:
        return lax.dot_general(lhs, rhs, dimension_numbers, **kwargs)

    def turned(lhs: Array, rhs: Array) -> Array:
        # Without the barrier, XLA removes the transposition.
        rhs = lax.optimization_barrier(rhs.T)
        return lax.dot_general(lhs, rhs, (((1,), (1,)), ((), ())), **kwargs)

    out: Array = lax.platform_dependent(lhs, rhs, cpu=turned, default=plain)
    return out


def _squares(images: Any, window: int) -> Any:
    """Cuts images into squares: `[batch, rows, window, columns, window, channels]`."""
    batch, height, width, channels = images.shape
    rows, columns = height // window, width // window
    return images[:, : rows * window, : columns * window].reshape(
        batch, rows, window, columns, window, channels
    )


def max_pool(
    images: Float[Array, "batch height width channels"], window: int = 2
) -> Float[Array, "batch out_height out_width channels"]:
    """Takes the maximum of each `window` × `window` square; a remainder is dropped.

    Of equal maxima the first counts, as in `nn.max_pool`. Its position is stored in a
    byte, and the gradient writes each element once. The gradient of `nn.max_pool` is a
    select-and-scatter, which is many times slower on CPU. The result is NaN only if the
    whole square is.
    """
    squares = _squares(images, window)
    places = np.arange(window**2, dtype=np.min_scalar_type(-(window**2)))
    known = lax.stop_gradient(squares)
    largest = known.max(axis=(2, 4))
    first = jnp.full(largest.shape, places[-1])
    for place in places[-2::-1]:
        row, column = divmod(int(place), window)
        first = jnp.where(known[:, :, row, :, column] == largest, place, first)
    places = places.reshape(1, 1, window, 1, window, 1)
    return jnp.where(first[:, :, None, :, None] == places, squares, 0).sum(axis=(2, 4))


def average_pool(
    images: Float[Array, "batch height width channels"], window: int = 2
) -> Float[Array, "batch out_height out_width channels"]:
    """Takes the mean of each `window` × `window` square; a remainder is dropped."""
    means: Array = _squares(images, window).mean(axis=(2, 4))
    return means
