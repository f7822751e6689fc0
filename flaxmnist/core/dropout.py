"""Dropout that depends on an example's place in its batch, not on how it is divided.

linen draws one mask for a batch, and its values depend on the size of the batch. Here,
each example has a key of its own, so a micro-batch gets its part of the mask of the
whole batch, as a device does.
"""

import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

# The stream of random numbers that all micro-batches of a step share.
STREAM = "example"
_SIGNATURE = inspect.signature(nn.Dropout.__call__)


def by_place(places: Int[Array | np.ndarray, " batch"]) -> Callable[..., Any]:
    """Returns an interceptor of `nn.Dropout`, for `nn.intercept_methods`.

    It draws from `STREAM`, if `rngs` of `apply` has it. Some layers remain those
    of linen: subclasses, those that share their mask along axes, those with a key or a
    collection of their own, those inside a transform of linen that hides the stream,
    and those whose inputs are not `[batch, …]`.

    Args:
      places: position of each example in its batch.
    """

    def intercept(
        call: Callable[..., Any], args: Any, kwargs: Any, context: Any
    ) -> Any:
        layer = context.module
        if type(layer) is not nn.Dropout or context.method_name != "__call__":
            return call(*args, **kwargs)
        given = _SIGNATURE.bind(layer, *args, **kwargs).arguments
        inputs, asked = given["inputs"], given.get("deterministic")
        if (
            nn.merge_param("deterministic", layer.deterministic, asked)
            or layer.rate in (0, 1)
            or given.get("rng") is not None
            or layer.rng_collection != "dropout"
            or layer.broadcast_dims
            or inputs.shape[:1] != places.shape
            or not layer.has_rng(STREAM)
        ):
            return call(*args, **kwargs)
        kept = 1 - layer.rate
        key = layer.make_rng(STREAM)

        def mask(place: Any) -> Array:
            own = jax.random.fold_in(key, place)
            return jax.random.bernoulli(own, kept, inputs.shape[1:])

        return jnp.where(jax.vmap(mask)(places), inputs / kept, 0)

    return intercept
