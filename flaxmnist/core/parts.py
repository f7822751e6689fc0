"""Equal parts of a batch, computed one after another so that they stay in the cache.

A part takes every n-th example, so that it is split over the same devices as the batch.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Shaped


def num_parts(
    count: int, num_bytes: int, part_bytes: int, devices: int = 1
) -> int | None:
    """Returns the number of parts in which to compute a batch, if any fits.

    Args:
      count: number of examples, a multiple of `devices`.
      num_bytes: bytes that the batch takes.
      part_bytes: maximum bytes of a part, on each device. A part of one example may
        take more.
      devices: number of devices that each part can be split over.

    Returns:
      the lowest number that leaves equal parts, unless only many small parts are equal.
    """
    fewest = min(-(-num_bytes // (part_bytes * devices)), count // devices)
    equal = (n for n in range(fewest, 2 * fewest) if count // devices % n == 0)
    return next(equal, None)


def split(
    batch: Shaped[Array, "batch ..."], parts: int
) -> Shaped[Array, "parts batch_of_part ..."]:
    """Returns the parts of a batch, of which `parts` must be a divisor."""
    return batch.reshape(-1, parts, *batch.shape[1:]).swapaxes(0, 1)


def join(
    parts: Shaped[Array, "parts batch_of_part ..."],
) -> Shaped[Array, "batch ..."]:
    """Returns the batch of which `parts` are the parts."""
    return parts.swapaxes(0, 1).reshape(-1, *parts.shape[2:])


def in_order(
    function: Callable[[Array], Array], batch: Shaped[Array, "batch ..."], parts: int
) -> Shaped[Array, "batch ..."]:
    """Returns `function(batch)`, computed for one part after another.

    Args:
      function: computes each example independently of the others.
      batch: its argument.
      parts: number of parts; a divisor of the batch.
    """
    if parts == 1:
        return function(batch)
    outputs: list[Array] = []
    for part in split(batch, parts):
        if outputs:
            # Otherwise XLA computes the parts at the same time.
            part, outputs[-1] = lax.optimization_barrier((part, outputs[-1]))
        outputs.append(function(part))
    return join(jnp.stack(outputs))
