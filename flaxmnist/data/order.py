"""The order of the examples, a function of the seed and the epoch."""

import dataclasses

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


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a run began to use its present batch size.

    Attributes:
      step: number of updates made before.
      epoch: number of epochs finished before.
      offset: number of examples of the next epoch that were seen before.
    """

    step: int = 0
    epoch: int = 0
    offset: int = 0


START = Origin()


class Epochs:
    """Which examples of which epoch each step takes, by their number.

    From `origin`, a step takes the next `batch_size` examples of the epoch. Examples
    that do not fill a batch are left out.

    Args:
      count: number of examples of an epoch.
      batch_size: number of examples of a step, at most `count`.
      origin: where the run began to use this batch size.

    Attributes:
      steps_per_epoch: number of steps of an epoch from its first example.
      start: the step at which epoch 0 would have begun if all epochs had as many steps.
    """

    def __init__(self, count: int, batch_size: int, origin: Origin = START):
        self._count, self._batch_size, self._origin = count, batch_size, origin
        self.steps_per_epoch = count // batch_size
        end = origin.step + (count - origin.offset) // batch_size
        self.start = end - (origin.epoch + 1) * self.steps_per_epoch

    def locate(self, step: int) -> tuple[int, int]:
        """Returns the epoch of a step and the number of its steps, of all, before it.

        The epoch of the origin counts as if its steps had had the present batch size.
        """
        return divmod(step - self.start, self.steps_per_epoch)

    def at(self, step: int) -> float:
        """Returns the number of epochs finished after a number of steps."""
        return (step - self.start) / self.steps_per_epoch

    def step_at(self, duration: int | str) -> int:
        """Returns the step at which a duration such as ``"2 epochs"`` has passed."""
        steps = options.to_steps(duration, self.steps_per_epoch)
        return steps if isinstance(duration, int) else max(1, self.start + steps)

    def seen(self, epoch: int) -> int:
        """Returns the number of examples of an epoch that were seen before `origin`."""
        return self._origin.offset if epoch == self._origin.epoch else 0

    def position(self, step: int) -> Origin:
        """Returns the origin of a run that uses another batch size from `step` on."""
        epoch, before = self.locate(step)
        seen = self.seen(epoch)
        left = self.steps_per_epoch - before
        whole = (self._count - seen) // self._batch_size
        return Origin(step, epoch, seen + (whole - left) * self._batch_size)


class Order:
    """The examples of each step.

    Args:
      count: number of examples.
      batch_size: examples per step, summed over all devices.
      mesh: must divide `batch_size` over its axis ``"data"``.
      seed: shuffles each epoch anew and drops the remainder. If None, every example
        comes once, in order, and the last batch is padded with `PADDING`.
      origin: where the run began to use this batch size.

    Raises:
      UserError: an argument is invalid, or the split is smaller than a batch.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        mesh: Mesh,
        seed: int | None,
        origin: Origin = START,
    ):
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
        self._mesh = mesh
        padding = -count % batch_size if seed is None else 0
        self.epochs = Epochs(count + padding, batch_size, origin)
        self.steps_per_epoch = self.epochs.steps_per_epoch

    def epoch(self, epoch: int) -> np.ndarray:
        """Returns the indices of an epoch's examples, int32 `[steps, batch]`.

        In the epoch of the origin, the rows before the origin are `PADDING`.
        """
        size = self.steps_per_epoch * self.batch_size
        if self.seed is None:
            rows = np.full(size, PADDING, np.int32)
            rows[: self.count] = np.arange(self.count)
        else:
            order = epoch_order(self.seed, epoch, self.count)[self.epochs.seen(epoch) :]
            used = len(order) // self.batch_size * self.batch_size
            rows = np.pad(order[:used], (size - used, 0), constant_values=PADDING)
        return rows.reshape(self.steps_per_epoch, self.batch_size)

    def continuing(self, origin: Origin) -> "Order":
        """Returns the order of a run that uses this batch size from `origin` on."""
        return Order(self.count, self.batch_size, self._mesh, self.seed, origin)
