"""Winograd convolution: a third to a sixth of the usual multiplications.

With an r × r kernel, a tile of 4 × 4 outputs needs n² multiplications per pair of an
input and an output channel, n = r + 3, instead of 16 r². The input tile and the kernel
are evaluated as polynomials at n points and multiplied there; the product is then
interpolated (Winograd, 1980; Lavin and Gray, 2016, "Fast Algorithms for Convolutional
Neural Networks"). The multiplications become n² matrix products over all tiles. The
other operations are sums of strided slices, which XLA fuses.

In float32 the result differs from a direct sum by about 1e-5 of its largest value.
"""

import functools
import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from flaxmnist.core.parts import join, num_devices, num_parts, split
from flaxmnist.core.pooling import first_maximum

# Side of a tile of outputs.
TILE = 4
# Kernel sizes. Larger kernels need more and larger points, which cost accuracy.
KERNELS = (3, 5)
# Those that are faster, by stride. With stride 2, kernels of 3×3 pixels would need 6.25
# instead of 9 multiplications, but the transforms take longer than that saves.
_FASTER = {1: KERNELS, 2: (5,)}
# Maximum bytes of products in a part of the batch, in training. With half of it, a
# micro-batch of the tutorial CNN would be divided, which is slower before JAX 0.12.
PART_BYTES = 32 << 20
# The same without gradients, where smaller parts are faster: no tiles are stored.
INFERENCE_PART_BYTES = 8 << 20
# With fewer channels the sums around the products cost more than they save.
MIN_CHANNELS = 8
# Without gradients, XLA's own convolution is faster with fewer channels, with other
# sizes of kernels, with stride 2, and with fewer tiles, where transforming the kernel
# takes longest.
INFERENCE_KERNEL, MIN_INFERENCE_CHANNELS, MIN_INFERENCE_TILES = 5, 32, 64


def is_faster(
    images: Array,
    kernel: Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> bool:
    """Returns whether :func:`conv` supports this convolution and is faster."""
    height, width, channels, _ = kernel.shape
    down, across = strides
    return (
        height == width
        and down == across
        and height in _FASTER.get(down, ())
        and channels >= MIN_CHANNELS
        and all(side >= 0 for pair in padding for side in pair)
        # In half precision the powers of the points would lose too much accuracy.
        and images.dtype in (jnp.float32, jnp.float64)
    )


def is_faster_in_inference(
    images: Array,
    kernel: Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> bool:
    """Returns whether :func:`conv` is faster than XLA without gradients, too.

    It requires :func:`is_faster`.
    """
    return (
        all(stride == 1 for stride in strides)
        and len(kernel) == INFERENCE_KERNEL
        and min(kernel.shape[2:]) >= MIN_INFERENCE_CHANNELS
        and _total_tiles(images, kernel, padding) >= MIN_INFERENCE_TILES
        and _num_parts(images, kernel, padding, INFERENCE_PART_BYTES) is not None
    )


@functools.cache
def _matrices(r: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the transforms of outputs `[n, 4]`, kernels `[n, r]` and inputs `[n, n]`.

    The Toom-Cook algorithm evaluates two polynomials at n points, the last of them at
    infinity, to multiply them. Winograd's algorithm is its transpose.
    """
    n = TILE + r - 1
    points = np.array([0, 1, -1, 2, -2, 0.5, -0.5])[: n - 1]

    def evaluate(size: int) -> np.ndarray:
        return np.vstack([np.vander(points, size, True), np.eye(size)[-1]])

    inputs = np.linalg.inv(evaluate(n)).T
    inputs[np.abs(inputs) < 1e-12] = 0
    # Scale each row to a maximum of 1, and undo that in the same row for kernels.
    scale = np.abs(inputs).max(axis=1, keepdims=True)
    return evaluate(TILE), evaluate(r) * scale, inputs / scale


def _combine(matrix: np.ndarray, parts: Sequence[Array]) -> Array:
    """Returns the product of `matrix` and the stacked `parts`."""
    sums = [
        [
            float(weight) * part
            for weight, part in zip(row, parts, strict=True)
            if weight
        ]
        for row in matrix
    ]
    return jnp.stack([functools.reduce(operator.add, terms) for terms in sums])


def _output_size(images: Array, r: int, padding: Any) -> list[int]:
    """Returns height and width of the output for an r × r kernel."""
    return [
        side + low + high - r + 1
        for side, (low, high) in zip(images.shape[1:3], padding, strict=True)
    ]


def _num_tiles(size: Iterable[int]) -> list[int]:
    """Returns the number of tiles that cover each side."""
    return [-(-side // TILE) for side in size]


def _total_tiles(images: Array, kernel: Array, padding: Any) -> int:
    """Returns the number of tiles of all outputs."""
    size = _output_size(images, len(kernel), padding)
    return len(images) * math.prod(_num_tiles(size))


def _transform(matrix: np.ndarray, images: Array) -> Array:
    """Transforms overlapping tiles of images, one every `TILE` pixels, on both axes.

    Returns:
      `[n, n, batch, rows, columns, channels]`. The first two axes are the column and
      the row within the tile.
    """
    _, size = matrix.shape
    rows, columns = _num_tiles(side - size + 1 for side in images.shape[1:3])
    down = _combine(
        matrix, [images[:, i : i + rows * TILE : TILE] for i in range(size)]
    )
    return _combine(
        matrix, [down[:, :, :, j : j + columns * TILE : TILE] for j in range(size)]
    )


def _transform_back(matrix: np.ndarray, tiles: Array) -> Array:
    """Returns the adjoint of :func:`_transform`: images where overlapping tiles add up.

    The result has one more row and column of tiles, because tiles overlap.
    """
    across = _overlap_add_in_place(_combine(matrix.T, list(tiles)), axis=4)
    down = _combine(matrix.T, list(across.swapaxes(0, 1)))
    return _to_images(_overlap_add(down, axis=3))


def _overlap_add(parts: Array, axis: int) -> Array:
    """Adds up tiles of more than `TILE` pixels, which lie on the first axis.

    Args:
      parts: the pixels of each tile, `[n, …]`.
      axis: of the tiles, which becomes longer by one.
    """
    inside = [(0, 0)] * parts.ndim
    beyond = [*inside]
    inside[axis], beyond[axis] = (0, 1), (1, 0)
    beyond[0] = (0, 2 * TILE - len(parts))
    return jnp.pad(parts[:TILE], inside) + jnp.pad(parts[TILE:], beyond)


def _overlap_add_in_place(parts: Array, axis: int) -> Array:
    """Returns the same as :func:`_overlap_add`, faster if the result is stored.

    XLA fuses a sum of padded arrays with the next operation, but vectorizes it poorly.
    """
    inside, start = [(0, 0)] * parts.ndim, [0] * parts.ndim
    inside[axis], start[axis] = (0, 1), 1
    padded, rest = jnp.pad(parts[:TILE], inside), parts[TILE:]
    overlapped = lax.slice_in_dim(padded[: len(rest)], 1, None, axis=axis)
    added: Array = lax.dynamic_update_slice(padded, overlapped + rest, start)
    return added


def _to_images(tiles: Array) -> Array:
    """Joins tiles to images `[batch, height, width, channels]`.

    Args:
      tiles: `[row in tile, column in tile, batch, rows, columns, channels]`.
    """
    height, width, batch, rows, columns, channels = tiles.shape
    return tiles.transpose(2, 3, 0, 4, 1, 5).reshape(
        batch, rows * height, columns * width, channels
    )


def _pad_to_tiles(images: Array, low: Sequence[int], size: Sequence[int]) -> Array:
    """Pads images with `low` zeros before, and with zeros after, up to `size`."""
    pads = [
        (before, wanted - before - side)
        for before, wanted, side in zip(low, size, images.shape[1:3], strict=True)
    ]
    return jnp.pad(images, ((0, 0), *pads, (0, 0)))


def conv(
    images: Float[Array, "batch height width cin"],
    kernel: Float[Array, "size size cin cout"],
    padding: tuple[tuple[int, int], ...],
    precision: Any = None,
    pool: bool = False,
    part_bytes: int = PART_BYTES,
    *,
    stride: int = 1,
) -> Float[Array, "batch out_height out_width cout"]:
    """Convolves square kernels by Winograd's F(4 × 4, r × r), for r in `KERNELS`.

    With stride 1, r is the size of the kernel, and with stride 2 half of it, rounded
    up. A large batch is convolved in parts that fit into the cache, if some number of
    parts divides it.

    Args:
      images: `[batch, height, width, cin]`, float32 or float64.
      kernel: `[size, size, cin, cout]`.
      padding: zeros before and after, for each spatial dimension.
      precision: precision of the matrix products.
      pool: whether to take the maximum of each block of 2×2 outputs, without a
        remainder.
      part_bytes: maximum bytes of products in a part, on each device.
      stride: 1 or 2, along both axes.
    """
    if stride == 2:
        images, kernel = _with_stride_1(images, kernel, padding)
        padding = ((0, 0), (0, 0))
    parts = _num_parts(images, kernel, padding, part_bytes) or 1
    if parts == 1:
        return _conv(images, kernel, padding, precision, pool)
    convolved: Array = lax.map(
        lambda part: _conv(part, kernel, padding, precision, pool), split(images, parts)
    )
    return join(convolved)


def _with_stride_1(images: Array, kernel: Array, padding: Any) -> tuple[Array, Array]:
    """Returns images and a kernel whose convolution equals one with stride 2.

    The new one has stride 1 and no padding. Even and odd rows and columns become
    channels: 5×5 pixels of a kernel are 3×3 pixels of four times as many channels
    (compare Huang et al., 2020, "DWM: A Decomposable Winograd Method for Convolution
    Acceleration").
    """
    size, _, cin, cout = kernel.shape
    half = -(-size // 2)
    height, width = (
        -(-side // 2) + half - 1 for side in _output_size(images, size, padding)
    )
    low = [before for before, _ in padding]
    images = _pad_to_tiles(images, low, [2 * height, 2 * width])
    images = images.reshape(-1, height, 2, width, 2, cin)
    images = images.transpose(0, 1, 3, 2, 4, 5).reshape(-1, height, width, 4 * cin)
    kernel = jnp.pad(kernel, [(0, 2 * half - size)] * 2 + [(0, 0)] * 2)
    kernel = kernel.reshape(half, 2, half, 2, cin, cout).transpose(0, 2, 1, 3, 4, 5)
    return images, kernel.reshape(half, half, 4 * cin, cout)


def _num_parts(
    images: Array, kernel: Array, padding: Any, part_bytes: int
) -> int | None:
    """Returns the number of parts in which to convolve a batch, if any fits."""
    devices = num_devices(len(images))
    products = _total_tiles(images, kernel, padding) * (TILE + len(kernel) - 1) ** 2
    size = products * max(kernel.shape[2:]) * images.dtype.itemsize
    return num_parts(len(images), size, part_bytes, devices)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv(
    images: Array, kernel: Array, padding: Any, precision: Any, pool: bool
) -> Array:
    outputs: Array = _forward(images, kernel, padding, precision, pool)[0]
    return outputs


def _forward(
    images: Array, kernel: Array, padding: Any, precision: Any, pool: bool
) -> Any:
    r, _, cin, cout = kernel.shape
    outputs, kernels, inputs = _matrices(r)
    n = len(inputs)
    size = _output_size(images, r, padding)
    low = [before for before, _ in padding]
    extent = [TILE * count + r - 1 for count in _num_tiles(size)]

    tiles = _transform(inputs, _pad_to_tiles(images, low, extent))
    kernels = kernels.astype(kernel.dtype)
    filters = jnp.einsum("ai,bj,ijcd->bacd", kernels, kernels, kernel)
    filters = filters.reshape(n * n, cin, cout)
    products = jnp.matmul(
        tiles.reshape(n * n, -1, cin), filters, precision=precision
    ).reshape(*tiles.shape[:-1], cout)
    across = _combine(outputs.T, list(products))
    both = _combine(outputs.T, list(across.swapaxes(0, 1)))
    first = None
    if pool:
        size = [side // 2 for side in size]
        both, first = first_maximum(
            [both[row::2, column::2] for row in range(2) for column in range(2)]
        )
    whole = _to_images(both)[:, : size[0], : size[1]]
    return whole, (images, filters, tiles, first)


def _backward(
    padding: Any, precision: Any, pool: bool, residuals: Any, grads: Array
) -> Any:
    images, filters, tiles, first = residuals
    *_, rows, columns, cin = tiles.shape
    cout = grads.shape[-1]
    n = len(tiles)
    r = n + 1 - TILE
    outputs, kernels, inputs = _matrices(r)
    side = TILE // 2 if pool else TILE
    padded = _pad_to_tiles(grads, (0, 0), [rows * side, columns * side])
    if pool:
        of_products = _transform_maxima(outputs, first, padded)
    else:
        of_products = _transform(outputs, padded)
    of_products = of_products.reshape(n * n, -1, cout)

    of_filters = jnp.einsum(
        "ktc,ktd->kcd",
        tiles.reshape(n * n, -1, cin),
        of_products,
        precision=precision,
    ).reshape(n, n, cin, cout)
    kernels = kernels.astype(of_filters.dtype)
    of_kernel = jnp.einsum("ai,bj,bacd->ijcd", kernels, kernels, of_filters)

    of_tiles = jnp.matmul(of_products, filters.swapaxes(1, 2), precision=precision)
    of_padded = _transform_back(inputs, of_tiles.reshape(tiles.shape))
    (top, _), (left, _) = padding
    height, width = images.shape[1:3]
    return of_padded[:, top : top + height, left : left + width], of_kernel


def _transform_maxima(matrix: np.ndarray, first: Array, grads: Array) -> Array:
    """Transforms the gradient of tiles, which is zero except at the maxima.

    Args:
      matrix: `[n, TILE]`.
      first: place of the maximum of each block of 2×2 pixels,
        `[2, 2, batch, rows, columns, channels]`.
      grads: gradient of the maxima, `[batch, 2 rows, 2 columns, channels]`.

    Returns:
      what :func:`_transform` returns of such tiles.
    """
    batch, height, width, channels = grads.shape
    values = grads.reshape(batch, height // 2, 2, width // 2, 2, channels)
    values = values.transpose(2, 4, 0, 1, 3, 5)

    def pixels(row: int, column: int) -> Array:
        window, place = (row // 2, column // 2), row % 2 * 2 + column % 2
        return jnp.where(first[window] == place, values[window], 0)

    down = _combine(
        matrix,
        [jnp.stack([pixels(i, j) for j in range(TILE)]) for i in range(TILE)],
    )
    return _combine(matrix, list(down.swapaxes(0, 1)))


_conv.defvjp(_forward, _backward)
