"""Dropout that depends on an example's place in its batch, not on how it is divided.

linen draws one mask for a batch, whose values depend on its size. Here each example has
a key of its own, so micro-batches and devices draw what the whole batch would.
"""

import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

# The stream of random numbers that all micro-batches of a step share.
STREAM = "example"
_SIGNATURE = inspect.signature(nn.Dropout.__call__)


def by_place(places: Int[Array, " batch"]) -> Callable[..., Any]:
    """Returns an interceptor of `nn.Dropout`, for `nn.intercept_methods`.

    It draws from `STREAM`, which `rngs` of `apply` must have. A layer is left as it is
    if it shares its mask along axes, has a key or a collection of its own, or inputs
    that are not `[batch, …]`.

    Args:
      places: of the examples in the batch.
    """

    def intercept(
        call: Callable[..., Any], args: Any, kwargs: Any, context: Any
    ) -> Any:
        layer = context.module
        if not isinstance(layer, nn.Dropout) or context.method_name != "__call__":
            return call(*args, **kwargs)
        given = _SIGNATURE.bind(layer, *args, **kwargs).arguments
        inputs = given["inputs"]
        if (
            given.get("deterministic", layer.deterministic) is not False
            or given.get("rng") is not None
            or layer.rng_collection != "dropout"
            or layer.broadcast_dims
            or inputs.shape[:1] != places.shape
        ):
            return call(*args, **kwargs)
        kept = 1 - layer.rate
        key = layer.make_rng(STREAM)

        def mask(place: Array) -> Array:
            own = jax.random.fold_in(key, place)
            return jax.random.bernoulli(own, kept, inputs.shape[1:])

        return jnp.where(jax.vmap(mask)(places), inputs / (kept or 1), 0)

    return intercept
