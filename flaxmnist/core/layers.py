"""Inputs, options and pooling that the models share."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from flaxmnist.core import mnist
from flaxmnist.core.batch import as_images
from flaxmnist.core.nn import avg_pool, max_pool
from flaxmnist.options import OptionType, optional

Images = Shaped[Array | np.ndarray, "batch ..."]
Logits = Float[Array, "batch classes"]
# One or several whole numbers; a model stores them as a tuple.
Sizes = Any

POOLS = {"max": max_pool, "average": avg_pool}


def scale(images: Images) -> Float[Array, "batch height width channels"]:
    """Returns images as float32 in [0, 1]. No other function scales pixels.

    Args:
      images: uint8 or floating point, `[batch, height, width, channels]`; or MNIST's,
        in a form that :func:`flaxmnist.core.batch.as_images` accepts.

    Raises:
      UserError: the images have another shape or dtype.
    """
    shape = images.shape[1:]
    images = as_images(images, shape if len(shape) == 3 else mnist.IMAGE_SHAPE)
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255
    return images.astype(jnp.float32)


def flat(x: Array) -> Array:
    """Returns `[batch, values]`."""
    return x.reshape(x.shape[0], -1)


def _floating(dtype: Any) -> Any:
    if dtype is None or not jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
        raise TypeError
    return dtype


DTYPE = optional(
    OptionType("a floating-point type such as 'float32' or 'bfloat16'", _floating)
)
DTYPE_HELP = (
    "Type that layers compute in; None: the type of their inputs and parameters. "
    "Parameters, batch statistics and logits are always float32."
)
