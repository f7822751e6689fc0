"""Convolution and dense layers whose training is fast on every platform.

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

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from flaxmnist.core import winograd
from flaxmnist.core.pooling import first_maximum, max_pool, of_first

# XLA computes convolutions with more taps than this, and such pools of maxima.
MAX_TAPS = 81
# With so few outputs, XLA's own convolution is slow on CPU, without gradients too.
_FEW_OUTPUTS = 16


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
    if padded.shape[-1] == 1:  # Long rows to copy, instead of single pixels.
        return jnp.stack(pieces).reshape(len(pieces), -1).T
    rows = jnp.concatenate(pieces, axis=-1)
    return rows.reshape(-1, rows.shape[-1])


def conv_by_matmul(
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
    return out.reshape(len(images), *counts, cout)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv_max_pool_by_matmul(
    images: Float[Array, "batch height width cin"],
    kernel: Float[Array, "kh kw cin cout"],
    padding: tuple[tuple[int, int], ...],
    precision: Any = None,
) -> Float[Array, "batch out_height out_width cout"]:
    """Convolves with stride 1 and takes the maximum of 2×2 pixels, in one product.

    The four outputs of a window are channels of one convolution, whose kernel contains
    `kernel` at four places and whose stride is 2. There are a fourth of the patches,
    and maxima are taken of contiguous memory. A remainder is dropped.
    """
    pooled: Array = _conv_max_pool(images, kernel, padding, precision)[0]
    return pooled


# Row and column of the outputs of a window.
_PLACES = [(0, 0), (0, 1), (1, 0), (1, 1)]


def _window_patches(images: Array, size: Sequence[int], padding: Any) -> Array:
    """Returns the pixels that each window of 2×2 outputs depends on, as rows."""
    padded = jnp.pad(images, ((0, 0), *padding, (0, 0)))
    counts = [
        (side - length + 1) // 2
        for side, length in zip(padded.shape[1:3], size, strict=True)
    ]
    return _patches(padded, [length + 1 for length in size], (2, 2), counts)


def _four_kernels(kernel: Array) -> Array:
    """Returns the kernel of a window's outputs `[(kh + 1)(kw + 1) cin, 4 cout]`."""
    placed = [
        jnp.pad(kernel, ((row, 1 - row), (column, 1 - column), (0, 0), (0, 0)))
        for row, column in _PLACES
    ]
    return jnp.concatenate(placed, axis=-1).reshape(-1, 4 * kernel.shape[-1])


def _conv_max_pool(images: Array, kernel: Array, padding: Any, precision: Any) -> Any:
    *size, _, cout = kernel.shape
    patches = _window_patches(images, size, padding)
    outputs = jnp.matmul(patches, _four_kernels(kernel), precision=precision)
    largest, first = first_maximum(jnp.split(outputs, 4, axis=-1))
    height, width = (
        (side + sum(pad) - length + 1) // 2
        for side, pad, length in zip(images.shape[1:3], padding, size, strict=True)
    )
    residuals = (images, kernel, patches, first)
    return largest.reshape(len(images), height, width, cout), residuals


def _conv_max_pool_pull(padding: Any, precision: Any, residuals: Any, g: Array) -> Any:
    images, kernel, patches, first = residuals
    *size, _, cout = kernel.shape
    of_outputs = jnp.concatenate(of_first(first, g.reshape(-1, cout), 4), axis=-1)
    of_patches = jnp.matmul(of_outputs, _four_kernels(kernel).T, precision=precision)
    of_kernels = jnp.matmul(patches.T, of_outputs, precision=precision)
    cut = functools.partial(_window_patches, size=size, padding=padding)
    return (
        *jax.linear_transpose(cut, images)(of_patches),
        *jax.linear_transpose(_four_kernels, kernel)(of_kernels),
    )


conv_max_pool_by_matmul.defvjp(_conv_max_pool, _conv_max_pool_pull)


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
    return _conv(lhs, rhs, window_strides, padding, pool=False, **kwargs)


def conv_max_pool(
    lhs: Float[Array, "batch height width cin"],
    rhs: Float[Array, "kh kw cin cout"],
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **kwargs: Any,
) -> Float[Array, "batch out_height out_width cout"]:
    """Takes the maximum of each 2×2 outputs of :func:`conv`; a remainder is dropped.

    On CPU, both are computed together: without the outputs of the convolution in memory
    if the images have few channels, and otherwise without those of its gradient. A bias
    and an increasing function can follow, as they commute with the maximum.

    Args:
      lhs: images, channels last.
      rhs: kernel.
      window_strides: those of the convolution.
      padding: that of the convolution.
      **kwargs: see :func:`conv`.
    """
    return _conv(lhs, rhs, window_strides, padding, pool=True, **kwargs)


def _conv(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    pool: bool,
    **kwargs: Any,
) -> Array:
    precision = kwargs.get("precision")

    def pooled(out: Array) -> Array:
        return max_pool(out, (2, 2)) if pool else out

    def xla(lhs: Array, rhs: Array) -> Array:
        return pooled(
            lax.conv_general_dilated(lhs, rhs, window_strides, padding, **kwargs)
        )

    dilations = (
        *(kwargs.get("lhs_dilation") or ()),
        *(kwargs.get("rhs_dilation") or ()),
    )
    groups = lhs.shape[-1] // rhs.shape[-2]
    if not has_fast_gradient(rhs.shape[:-2], groups, dilations):
        return xla(lhs, rhs)
    pads = explicit_padding(lhs.shape[1:3], rhs.shape[:2], window_strides, padding)
    at_once = pool and _pools_at_once(rhs, window_strides, pads)

    def matmul(lhs: Array, rhs: Array) -> Array:
        if at_once:
            out: Array = conv_max_pool_by_matmul(lhs, rhs, pads, precision)
            return out
        if winograd.is_faster(lhs, rhs, window_strides, pads):
            return winograd.conv(lhs, rhs, pads, precision, pool)
        return pooled(conv_by_matmul(lhs, rhs, window_strides, pads, precision))

    def differentiable(lhs: Array, rhs: Array) -> Any:
        return lax.platform_dependent(lhs, rhs, cpu=matmul, default=xla)

    few = at_once and rhs.shape[-1] <= _FEW_OUTPUTS
    convolve = jax.custom_jvp(differentiable if few else xla)
    convolve.defjvp(
        lambda primals, tangents: jax.jvp(differentiable, primals, tangents)
    )
    out: Array = convolve(lhs, rhs)
    return out


def _pools_at_once(
    kernel: Array, strides: Sequence[int], padding: Sequence[tuple[int, int]]
) -> bool:
    """Returns whether :func:`conv_max_pool_by_matmul` is the fastest for a kernel."""
    height, width, channels, _ = kernel.shape
    return (
        channels < winograd.MIN_CHANNELS
        # Small kernels would multiply by zeros mostly.
        and min(height, width) >= 3
        and all(stride == 1 for stride in strides)
        and all(side >= 0 for pair in padding for side in pair)
    )


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
