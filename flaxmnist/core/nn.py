"""Layers of linen that train fast on every platform, for models of your own.

They have the names, arguments, parameters and values of linen's.
"""

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Shaped

from flaxmnist.core import ops, pooling
from flaxmnist.core.batch import ImageShape

__all__ = ["Conv", "avg_pool", "max_pool"]

Images = Shaped[Array, "*batch channels"]
Padding = str | Sequence[tuple[int, int]]


class Conv(nn.Conv):
    """Replaces `linen.Conv`: XLA differentiates that one slowly in a loop on CPU.

    Both have the same arguments and parameters; values and gradients differ by
    rounding. Only two-dimensional convolutions become faster, with at most 81 taps and
    neither groups nor dilation; others are those of linen. Forward-mode
    differentiation, such as `jax.jvp`, needs `linen.Conv`.
    """

    conv_general_dilated: Any = ops.conv


def max_pool(
    inputs: Images,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Padding = "VALID",
) -> Images:
    """Replaces `linen.max_pool`. Windows that do not overlap have fast gradients."""
    small = math.prod(window_shape) <= ops.MAX_TAPS
    if small and _tiles(inputs, window_shape, strides, padding):
        return pooling.max_pool(inputs, tuple(window_shape))
    pooled: Array = nn.max_pool(
        inputs, window_shape=window_shape, strides=strides, padding=padding
    )
    return pooled


def avg_pool(
    inputs: Images,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Padding = "VALID",
    count_include_pad: bool = True,
) -> Images:
    """Replaces `linen.avg_pool`. Windows that do not overlap have fast gradients."""
    if _tiles(inputs, window_shape, strides, padding):
        return pooling.average_pool(inputs, tuple(window_shape))
    pooled: Array = nn.avg_pool(
        inputs, window_shape, strides, padding, count_include_pad
    )
    return pooled


def _tiles(inputs: Array, window: Any, strides: Any, padding: Padding) -> bool:
    """Returns whether two-dimensional windows lie side by side, without padding."""
    if len(window) != 2 or strides is None or tuple(strides) != tuple(window):
        return False
    pads = ops.explicit_padding(inputs.shape[-3:-1], window, strides, padding)
    return pads == ((0, 0), (0, 0))


class TracedLayers(NamedTuple):
    """Layers and activations of a model.

    Attributes:
      dense: paths of its dense layers, in the order of their calls.
      slow: paths of convolutions of linen that :class:`Conv` would replace.
      activation_bytes: bytes of the outputs of all its modules, for one image.
    """

    dense: tuple[str, ...]
    slow: tuple[str, ...]
    activation_bytes: int


@functools.cache
def traced_layers(model: nn.Module, image_shape: ImageShape) -> TracedLayers:
    """Returns the layers of a model; cached, because tracing is slow.

    Args:
      model: maps `[batch, height, width, channels]` images to logits.
      image_shape: height, width and channels of an image.
    """
    modules: dict[str, nn.Module] = {}
    sizes: list[int] = []

    def record(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        modules.setdefault("/".join(context.module.path), context.module)
        outputs = call(*args, **kwargs)
        sizes.extend(getattr(leaf, "nbytes", 0) for leaf in jax.tree.leaves(outputs))
        return outputs

    def init() -> Any:
        images = jnp.zeros((1, *image_shape), jnp.uint8)
        return model.init(jax.random.key(0), images, train=False)

    with nn.intercept_methods(record):
        jax.eval_shape(init)
    return TracedLayers(
        tuple(path for path, one in modules.items() if isinstance(one, nn.Dense)),
        tuple(path for path, one in modules.items() if _is_slow(one)),
        sum(sizes),
    )


@functools.cache
def warn_of_slow_conv(model: nn.Module, image_shape: ImageShape) -> None:
    """Warns, once per model, of convolutions that train slowly in a loop on CPU."""
    if jax.default_backend() != "cpu":
        return
    if slow := traced_layers(model, image_shape).slow:
        warnings.warn(
            f"{type(model).__name__}: linen's Conv ({', '.join(slow)}) trains several "
            "times slower than flaxmnist.nn.Conv in a loop on CPU. Replace nn.Conv by "
            "flaxmnist.nn.Conv, with the same arguments and parameters, and so "
            "nn.max_pool and nn.avg_pool",
            stacklevel=2,
        )


def _is_slow(module: nn.Module) -> bool:
    """Returns whether a module is linen's convolution and :class:`Conv` is faster."""
    return (
        isinstance(module, nn.Conv)
        and module.conv_general_dilated in (None, lax.conv_general_dilated)
        and module.conv_general_dilated_cls is None
        and ops.has_fast_gradient(
            np.ravel(module.kernel_size).tolist(),
            module.feature_group_count,
            np.append(module.input_dilation or 1, module.kernel_dilation or 1).tolist(),
        )
    )
