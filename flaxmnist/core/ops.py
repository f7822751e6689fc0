"""Convolution, pooling and dense layers whose training is fast on every platform.

XLA's CPU backend differentiates a convolution inside a loop an order of magnitude
slower than outside (jax-ml/jax#12868), and a training loop that stays on the device
is such a loop. Where :func:`conv` is differentiated on CPU, it therefore consists of
matrix products: over tiles where `winograd` is faster, otherwise over patches (im2col;
Chellapilla et al., 2006, "High Performance Convolutional Neural Networks for Document
Processing"). Elsewhere it is XLA's own convolution, which is faster without gradients.
"""

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Shaped

from flaxmnist.core import winograd

# XLA computes convolutions with more taps than this, and such pools of maxima.
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


def has_fast_gradient(
    kernel_size: Sequence[int], groups: int, dilations: Iterable[int]
) -> bool:
    """Returns whether :func:`conv` has gradients of its own for a convolution.

    XLA computes dilated and grouped convolutions, those with large kernels, and those
    of one or three dimensions.
    """
    return (
        len(kernel_size) == 2
        # Patches of a large kernel take long to compile and save little time.
        and math.prod(kernel_size) <= MAX_TAPS
        and groups == 1
        and all(dilation == 1 for dilation in dilations)
    )


def conv(
    lhs: Float[Array, "batch *spatial cin"],
    rhs: Float[Array, "*kernel cin_per_group cout"],
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **kwargs: Any,
) -> Float[Array, "batch *out_spatial cout"]:
    """Replaces `lax.conv_general_dilated`, with fast gradients in a loop on CPU.

    If it is differentiated, the platform for which the program is compiled determines
    the computation of both the convolution and its gradients.

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

    def differentiable(lhs: Array, rhs: Array) -> Any:
        return lax.platform_dependent(lhs, rhs, cpu=matmul, default=xla)

    dilations = (
        *(kwargs.get("lhs_dilation") or ()),
        *(kwargs.get("rhs_dilation") or ()),
    )
    groups = lhs.shape[-1] // rhs.shape[-2]
    if not has_fast_gradient(rhs.shape[:-2], groups, dilations):
        return xla(lhs, rhs)
    convolve = jax.custom_jvp(xla)
    convolve.defjvp(
        lambda primals, tangents: jax.jvp(differentiable, primals, tangents)
    )
    out: Array = convolve(lhs, rhs)
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
    places = np.arange(math.prod(window))
    places = places.astype(np.min_scalar_type(-places.size))
    largest = windows.max(axis=(-4, -2))
    first = jnp.full(largest.shape, places[-1])
    for place in places[-2::-1]:
        row, column = divmod(int(place), window[1])
        first = jnp.where(windows[..., row, :, column, :] == largest, place, first)
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
