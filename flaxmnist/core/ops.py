"""Convolution and dense layers whose training is fast on every platform.

XLA's CPU backend differentiates a convolution inside a loop an order of magnitude
slower than outside (jax-ml/jax#12868), and a training loop that stays on the device
is such a loop. Where :func:`conv` is differentiated on CPU, it therefore consists of
matrix products: over tiles where `winograd` is faster, otherwise over `patches`.
Elsewhere it is XLA's own convolution, which is faster without gradients, except for a
few small kernels on gray images, and for kernels of 5×5 pixels on many channels.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from flaxmnist.core import patches, winograd
from flaxmnist.core.pooling import max_pool

# XLA computes convolutions with more taps than this, and such pools of maxima.
MAX_TAPS = 81
# With so few kernels, XLA's own convolution of few channels is slow on CPU, without
# gradients too. Patches for kernels with more taps would take too much memory.
_FEW_KERNELS, _FEW_TAPS = 16, 25


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
    *,
    pool: bool = False,
    **kwargs: Any,
) -> Float[Array, "batch *out_spatial cout"]:
    """Replaces `lax.conv_general_dilated`, with fast gradients in a loop on CPU.

    If it is differentiated, the platform for which the program is compiled determines
    the computation of both the convolution and its gradients.

    On CPU, two kinds consist of matrix products without gradients, too. The first has
    at most 16 kernels, either on gray images with up to 25 taps, or of stride 1 with
    pooling on up to 4 channels. The second has at least 32 kernels of 5×5 pixels and
    stride 1 on at least 32 channels, in float32 or float64, and at least 64 tiles of
    4×4 outputs.

    With `pool`, training on CPU takes the maxima before the outputs are arranged as
    images, which saves passes over memory. A bias and an increasing function can
    follow, as they commute with the maximum.

    Args:
      lhs: images, channels last.
      rhs: kernel.
      window_strides: one stride a spatial dimension.
      padding: "SAME", "VALID" or a (low, high) pair a spatial dimension.
      pool: whether to take the maximum of each block of 2×2 outputs; a remainder is
        dropped.
      **kwargs: the other arguments of `lax.conv_general_dilated`, as `nn.Conv`
        gives them.
    """
    dilations = (
        *(kwargs.get("lhs_dilation") or ()),
        *(kwargs.get("rhs_dilation") or ()),
    )
    groups = lhs.shape[-1] // rhs.shape[-2]
    if has_fast_gradient(rhs.shape[:-2], groups, dilations):
        strides = tuple(window_strides)
        pads = explicit_padding(lhs.shape[1:3], rhs.shape[:2], strides, padding)
        sizes = zip(lhs.shape[1:3], rhs.shape[:2], pads, strict=True)
        # XLA crops images, and returns no pixel of those that are too small.
        if all(min(pad) >= 0 and side + sum(pad) >= size for side, size, pad in sizes):
            options = tuple(
                (name, tuple(value) if isinstance(value, list) else value)
                for name, value in kwargs.items()
            )
            lhs, rhs = _vary_alike(lhs, rhs)
            fast: Array = _fast_conv(lhs, rhs, strides, pads, pool, options)
            return fast
    out = lax.conv_general_dilated(lhs, rhs, window_strides, padding, **kwargs)
    return _maxima(out, pool)


def _vary_alike(*arrays: Array) -> list[Array]:
    """Returns arrays that vary over the same axes inside `jax.shard_map`.

    `jax.custom_vjp` requires it. The gradient of this cast is a sum over the devices.
    """
    types = [jax.typeof(array) for array in arrays]
    # JAX 0.7 has `vma` and `pvary` instead.
    axes = [each.mat.varying if hasattr(each, "mat") else each.vma for each in types]
    wanted = frozenset().union(*axes)

    def cast(array: Array, missing: tuple[str, ...]) -> Any:
        if not missing:
            return array
        if hasattr(lax, "pcast"):
            return lax.pcast(array, missing, to="varying")
        return lax.pvary(array, missing)  # type: ignore[attr-defined]

    return [
        cast(array, tuple(wanted - own))
        for array, own in zip(arrays, axes, strict=True)
    ]


def _maxima(out: Array, pool: bool) -> Array:
    """Returns the maximum of each block of 2×2 outputs, or without `pool` `out`."""
    return max_pool(out, (2, 2)) if pool else out


# JAX traces it once for equal layers and for the parts of a batch.
@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _fast_conv(
    lhs: Array,
    rhs: Array,
    strides: tuple[int, ...],
    pads: tuple[tuple[int, int], ...],
    pool: bool,
    options: tuple[tuple[str, Any], ...],
) -> Array:
    """Returns what :func:`conv` does, with arguments that can be hashed."""
    kwargs = dict(options)
    precision = kwargs.get("precision")

    def xla(lhs: Array, rhs: Array) -> Array:
        out = lax.conv_general_dilated(lhs, rhs, strides, pads, **kwargs)
        return _maxima(out, pool)

    in_patches = pool and patches.pools_faster(rhs, strides, pads)
    in_tiles = winograd.is_faster(lhs, rhs, strides, pads)

    def by_platform(part_bytes: int) -> Callable[[Array, Array], Array]:
        def products(lhs: Array, rhs: Array) -> Array:
            if in_patches:
                out: Array = patches.conv_max_pool(lhs, rhs, pads, precision)
                return out
            if in_tiles:
                return winograd.conv(
                    lhs, rhs, pads, precision, pool, part_bytes, stride=strides[0]
                )
            return _maxima(patches.conv(lhs, rhs, strides, pads, precision), pool)

        def either(lhs: Array, rhs: Array) -> Array:
            out: Array = lax.platform_dependent(lhs, rhs, cpu=products, default=xla)
            return out

        return either

    training = by_platform(winograd.PART_BYTES)
    inference: Callable[[Array, Array], Array] = xla
    is_small = lhs.shape[-1] == 1 and math.prod(rhs.shape[:2]) <= _FEW_TAPS
    is_slow = rhs.shape[-1] <= _FEW_KERNELS and (in_patches or is_small)
    # Exported programs have a symbolic batch, and consist of XLA's own operations.
    if isinstance(lhs.shape[0], int) and (
        is_slow
        or (in_tiles and winograd.is_faster_in_inference(lhs, rhs, strides, pads))
    ):
        inference = by_platform(winograd.INFERENCE_PART_BYTES)
    convolve = jax.custom_jvp(inference)
    convolve.defjvp(lambda primals, tangents: jax.jvp(training, primals, tangents))
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
    a fourth of the time. The gradient of the kernel multiplies a transposed copy of the
    gradient of the output, because XLA does not divide such a small product among
    threads. The output is float32 or wider, also for half precision.

    Args:
      lhs: inputs.
      rhs: kernel.
      dimension_numbers: those of a matrix product.
      **kwargs: the other arguments of `lax.dot_general`, as `nn.Dense` gives them.
    """
    kwargs["preferred_element_type"] = jnp.promote_types(lhs.dtype, jnp.float32)

    def plain(lhs: Array, rhs: Array) -> Array:
        return lax.dot_general(lhs, rhs, dimension_numbers, **kwargs)

    def by_rows(lhs: Array, rows: Array) -> Array:
        return lax.dot_general(lhs, rows, (((1,), (1,)), ((), ())), **kwargs)

    product = jax.custom_jvp(by_rows)
    product.defjvps(
        lambda lhs_dot, out, lhs, rows: by_rows(lhs_dot, rows),
        # Without the barrier, XLA removes the transposition in the gradient.
        lambda rows_dot, out, lhs, rows: (
            lax.optimization_barrier(by_rows(rows_dot, lhs)).T
        ),
    )

    def turned(lhs: Array, rhs: Array) -> Array:
        # Without the barrier, XLA removes this transposition, too.
        rows = lax.optimization_barrier(rhs.T)
        out: Array = product(lhs, rows)
        return out

    out: Array = lax.platform_dependent(lhs, rhs, cpu=turned, default=plain)
    return out
