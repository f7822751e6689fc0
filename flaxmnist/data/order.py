"""The order of the examples, a function of the seed and the epoch."""

import numpy as np
from jax.sharding import Mesh

from flaxmnist import options
from flaxmnist.errors import UserError, shown

# The index of an example that only fills up a batch.
PADDING = -1
_OPTIONS = {"batch_size": options.count, "seed": options.optional(options.seed)}


def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """Returns the order of `count` examples in an epoch, int32 `[count]`.

    It is drawn from the raw stream of Philox (Salmon et al., 2011). NumPy guarantees
    that this stream never changes, which does not hold for its `permutation`.
    """
    numbers = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(count)
    # Store each index in the low bits of its random number and sort once: faster than
    # argsort, and ties are impossible. In place, because `count` may be large.
    low = np.uint64((1 << (count - 1).bit_length()) - 1)
    numbers &= ~low
    numbers |= np.arange(count, dtype=np.uint64)
    numbers.sort()
    numbers &= low
    return numbers.astype(np.int32)


class Order:
    """The examples of each step.

    Args:
      count: number of examples.
      batch_size: examples per step, summed over all devices.
      mesh: must divide `batch_size` over its axis ``"data"``.
      seed: shuffles each epoch anew and drops the remainder. If None, every example
        comes once, in order, and the last batch is padded with `PADDING`.

    Raises:
      UserError: an argument is invalid, or the split is smaller than a batch.
    """

    def __init__(self, count: int, batch_size: int, mesh: Mesh, seed: int | None):
        given = {"batch_size": batch_size, "seed": seed}
        batch_size, seed = options.check("", given, _OPTIONS).values()
        if "data" not in getattr(mesh, "shape", ()):
            raise UserError(f"mesh={shown(mesh)}: expected one of sharding.make_mesh()")
        if batch_size % (parts := mesh.shape["data"]):
            raise UserError(
                f"batch_size={batch_size}: expected a multiple of {parts}, the size of "
                "the mesh's axis 'data'"
            )
        least = 1 if seed is None else batch_size
        if count < least:
            raise UserError(
                f"the split has {count:,} examples: expected at least {least:,}"
                + ("" if seed is None else ", one batch")
            )
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.steps_per_epoch = (
            -(-count // batch_size) if seed is None else count // batch_size
        )

    def epoch(self, epoch: int) -> np.ndarray:
        """Returns the indices of an epoch's examples, int32 `[steps, batch]`."""
        size = self.steps_per_epoch * self.batch_size
        if self.seed is not None:
            rows = epoch_order(self.seed, epoch, self.count)[:size]
        else:
            rows = np.full(size, PADDING, np.int32)
            rows[: self.count] = np.arange(self.count)
        return rows.reshape(self.steps_per_epoch, self.batch_size)
