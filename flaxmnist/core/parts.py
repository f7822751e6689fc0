"""Equal parts of a batch, each of which takes every n-th example.

A part is therefore split over the same devices as the batch.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Shaped


def num_devices(count: int) -> int:
    """Returns the greatest number that divides both a batch and all devices."""
    return math.gcd(count, jax.device_count())


def num_parts(
    count: int, num_bytes: int, part_bytes: int, devices: int = 1
) -> int | None:
    """Returns the lowest number of equal parts that are small enough.

    Args:
      count: number of examples, a multiple of `devices`.
      num_bytes: bytes that the batch takes.
      part_bytes: maximum bytes of a part, on each device.
      devices: number of devices that a part must be split over.

    Returns:
      the number; None if parts are equal only with twice the necessary number or more.
    """
    fewest = -(-num_bytes // (part_bytes * devices))
    numbers = range(fewest, 2 * fewest)
    return next((n for n in numbers if count // devices % n == 0), None)


def split(batch: Shaped[Array | np.ndarray, "batch ..."], parts: int) -> Any:
    """Returns an array as `[parts, batch / parts, …]`; `parts` divides the batch."""
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
