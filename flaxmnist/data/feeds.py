"""Turns a split into batches on a mesh.

The order of the examples is a function of seed and epoch, and the position in it is a
function of the step. A checkpoint therefore contains nothing about the data, and a
resumed run sees the same batches as an uninterrupted run.
"""

import concurrent.futures
import copy
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh

from flaxmnist.core import sharding
from flaxmnist.core.batch import ImageShape
from flaxmnist.core.gathering import gather_rows
from flaxmnist.core.types import Batch
from flaxmnist.data.order import PADDING, Order, Origin
from flaxmnist.data.rows import Read, gather, joined, reader
from flaxmnist.data.splits import Split
from flaxmnist.errors import UserError
from flaxmnist.runtime.memory import available_memory

# Bytes of images that a `HostFeed` sends at once.
SLAB_BYTES = 8 << 20
# Share of the available memory that a `DeviceFeed` may take.
MAX_SHARE = 0.8


@struct.dataclass
class DeviceBatches:
    """Examples on the devices and the order of those of a split.

    Images are flat, because tiled memory would pad a last dimension of 1.

    Attributes:
      images: uint8 `[count, pixels]`, replicated.
      labels: int32 `[count]`, replicated.
      order: int32 `[steps, batch]`, rows of `images`, split over the devices.
      steps: int32 `[]`, the number of steps after which `order` starts again.
      image_shape: height, width and channels (static).
    """

    images: jax.Array
    labels: jax.Array
    order: jax.Array
    steps: jax.Array
    image_shape: ImageShape = struct.field(pytree_node=False)

    def at(self, step: jax.Array) -> Batch:
        """Gathers the batch of a step; the gather follows the sharding of `order`."""
        rows = self.order[step % self.steps]
        mask = rows != PADDING
        rows = jnp.where(mask, rows, 0)
        images = gather_rows(self.images, rows).reshape(-1, *self.image_shape)
        return {"image": images, "label": self.labels[rows], "mask": mask}


@struct.dataclass
class HostBatches:
    """Some consecutive batches, sent by the host.

    Attributes:
      images: uint8 `[steps, batch, pixels]`, batches split over the devices.
      labels: int32 `[steps, batch]`.
      mask: bool `[steps, batch]`.
      first: int32 `[]`, the step of the first batch.
      image_shape: height, width and channels (static).
    """

    images: jax.Array
    labels: jax.Array
    mask: jax.Array
    first: jax.Array
    image_shape: ImageShape = struct.field(pytree_node=False)

    def at(self, step: jax.Array) -> Batch:
        """Returns the batch of a step; the step must be among these batches."""
        index = step - self.first
        images = self.images[index].reshape(-1, *self.image_shape)
        return {
            "image": images,
            "label": self.labels[index],
            "mask": self.mask[index],
        }


Batches = DeviceBatches | HostBatches


class Feed(Protocol):
    """Yields the batches of a split."""

    steps_per_epoch: int

    @classmethod
    def in_order(
        cls, splits: Mapping[str, Split], batch_size: int, mesh: Mesh
    ) -> "Mapping[str, Feed]":
        """Returns a feed of each split, which yields each example once, in order.

        Their arrays have the same shapes, so that one compiled program serves them all.
        """

    def chunks(self, start: int, stop: int) -> Iterator[tuple[Batches, int]]:
        """Yields `(batches, num_steps)` that cover the steps `start` … `stop - 1`."""

    def shuffled(self, batch_size: int, seed: int) -> "Feed":
        """Returns a feed of the same examples, in a new order every epoch."""

    def continuing(self, origin: Origin) -> "Feed":
        """Returns a feed with this batch size from `origin` on."""


def _count(split: object) -> int:
    if not isinstance(split, Split):
        raise UserError(
            f"split is a {type(split).__name__}: expected a Split, such as load().train"
        )
    return len(split)


def _check_fits(splits: Sequence[Split], mesh: Mesh) -> None:
    """Raises UserError unless each device of this process can hold all splits."""
    count = sum(map(len, splits))
    size = (math.prod(splits[0].image_shape) + 4) * count  # Labels are int32.
    devices = mesh.local_devices
    if devices[0].platform == "cpu":
        # Several splits are joined in memory first.
        copies = len(devices) + (len(splits) > 1)
        size, free = size * copies, available_memory()
    else:
        stats = [device.memory_stats() or {} for device in devices]
        rooms = [
            s["bytes_limit"] - s["bytes_in_use"] for s in stats if "bytes_limit" in s
        ]
        free = min(rooms, default=size * 2)
    # The model and the activations of a step need the rest.
    if size > MAX_SHARE * free:
        raise UserError(
            f"data.placement='device': {count:,} images need {size / 1e9:.1f} GB "
            f"of memory, and {free / 1e9:.1f} GB are available; set data.placement=host"
        )


@dataclasses.dataclass(frozen=True)
class _Examples:
    """Splits on the devices, one after the other.

    Attributes:
      images: uint8 `[count, pixels]`, replicated.
      labels: int32 `[count]`, replicated.
      mesh: the devices.
      image_shape: height, width and channels.
      first: row of the first example of the split in use.
    """

    images: jax.Array
    labels: jax.Array
    mesh: Mesh
    image_shape: ImageShape
    first: int = 0

    @classmethod
    def of(cls, splits: Sequence[Split], mesh: Mesh) -> "_Examples":
        """Places splits; raises UserError if they do not fit."""
        _check_fits(splits, mesh)
        images = joined([split.images.reshape(len(split), -1) for split in splits])
        labels = np.concatenate([split.labels.astype(np.int32) for split in splits])
        placed = sharding.put_tree((images, labels), sharding.replicated(mesh))
        return cls(placed[0], placed[1], mesh, splits[0].image_shape)


class DeviceFeed:
    """Keeps the split on the devices; each epoch sends only the order of the examples.

    Args:
      split: the examples.
      batch_size: examples per step, summed over all devices.
      mesh: the devices.
      seed: shuffles each epoch anew and drops the remainder. If None, every example
        comes once, in order, and the last batch is padded.

    Raises:
      UserError: an argument is invalid, the split is smaller than a batch, or it does
        not fit into the memory of the devices.
    """

    def __init__(
        self, split: Split, batch_size: int, mesh: Mesh, seed: int | None = None
    ):
        order = Order(_count(split), batch_size, mesh, seed)
        self._start(_Examples.of([split], mesh), order)

    def _start(
        self, examples: _Examples, order: Order, num_rows: int | None = None
    ) -> None:
        """Sets every attribute; `num_rows` is that of the order on the devices."""
        self._examples, self._order = examples, order
        self.steps_per_epoch = order.steps_per_epoch
        self._num_rows = num_rows or order.steps_per_epoch
        self._steps = sharding.put(
            np.int32(order.steps_per_epoch), sharding.replicated(examples.mesh)
        )
        # Only the current epoch is needed.
        self._epochs: dict[int, DeviceBatches] = {}

    def _epoch(self, epoch: int) -> DeviceBatches:
        # `DeviceBatches.at` takes row `step % steps`.
        rows = np.roll(self._order.epoch(epoch), self._order.epochs.start, axis=0)
        examples = self._examples
        rows = np.where(rows == PADDING, PADDING, rows + np.int32(examples.first))
        unused = self._num_rows - len(rows)
        rows = np.pad(rows, ((0, unused), (0, 0)), constant_values=PADDING)
        return DeviceBatches(
            images=examples.images,
            labels=examples.labels,
            order=sharding.put(rows, sharding.split_over_data(examples.mesh, axis=1)),
            steps=self._steps,
            image_shape=examples.image_shape,
        )

    @classmethod
    def in_order(
        cls, splits: Mapping[str, Split], batch_size: int, mesh: Mesh
    ) -> dict[str, "DeviceFeed"]:
        """See :class:`Feed`."""
        orders = {
            name: Order(_count(split), batch_size, mesh, None)
            for name, split in splits.items()
        }
        num_rows = max(order.steps_per_epoch for order in orders.values())
        # The first training examples are those of validation: `joined` copies nothing.
        names = sorted(splits, key=lambda name: name != "validation")
        examples = _Examples.of([splits[name] for name in names], mesh)
        feeds = {}
        for name in names:
            order = orders[name]
            feed = feeds[name] = cls.__new__(cls)
            feed._start(examples, order, num_rows)
            examples = dataclasses.replace(examples, first=examples.first + order.count)
        return {name: feeds[name] for name in splits}

    def shuffled(self, batch_size: int, seed: int) -> "DeviceFeed":
        """See :class:`Feed`."""
        feed = copy.copy(self)
        order = Order(self._order.count, batch_size, self._examples.mesh, seed)
        feed._start(self._examples, order)
        return feed

    def continuing(self, origin: Origin) -> "DeviceFeed":
        """See :class:`Feed`."""
        feed = copy.copy(self)
        feed._start(self._examples, self._order.continuing(origin))
        return feed

    def chunks(self, start: int, stop: int) -> Iterator[tuple[DeviceBatches, int]]:
        """See :class:`Feed`."""
        while start < stop:
            epoch, offset = self._order.epochs.locate(start)
            end = min(stop, start - offset + self.steps_per_epoch)
            if epoch not in self._epochs:
                self._epochs = {epoch: self._epoch(epoch)}
            yield self._epochs[epoch], end - start
            start = end


class HostFeed:
    """Keeps the split in host memory or on disk and prefetches slabs of batches.

    Takes the arguments of :class:`DeviceFeed` and yields the same batches. If the split
    is on disk, only two slabs and the order are in memory. The order takes 16 bytes per
    example while it is drawn, and 4 afterwards.
    """

    def __init__(
        self, split: Split, batch_size: int, mesh: Mesh, seed: int | None = None
    ):
        order = Order(_count(split), batch_size, mesh, seed)
        self._split, self._mesh = split, mesh
        self._images, self._labels = (
            (array, reader(array, shuffled=seed is not None))
            for array in (split.images.reshape(len(split), -1), split.labels)
        )
        self._executor = concurrent.futures.ThreadPoolExecutor(1, "flaxmnist-prefetch")
        self._start(order)

    def _start(self, order: Order) -> None:
        self._order = order
        self.steps_per_epoch = order.steps_per_epoch
        batch_bytes = math.prod(self._split.image_shape) * order.batch_size
        self._slab_steps = max(1, min(SLAB_BYTES // batch_bytes, self.steps_per_epoch))
        self._rows = functools.lru_cache(maxsize=1)(self._order.epoch)
        self._slabs: dict[tuple[int, int], concurrent.futures.Future[HostBatches]] = {}

    @classmethod
    def in_order(
        cls, splits: Mapping[str, Split], batch_size: int, mesh: Mesh
    ) -> dict[str, "HostFeed"]:
        """See :class:`Feed`."""
        feeds = {name: cls(one, batch_size, mesh) for name, one in splits.items()}
        most = max(feed._slab_steps for feed in feeds.values())
        for feed in feeds.values():
            feed._slab_steps = most
        return feeds

    def shuffled(self, batch_size: int, seed: int) -> "HostFeed":
        """See :class:`Feed`."""
        return HostFeed(self._split, batch_size, self._mesh, seed)

    def continuing(self, origin: Origin) -> "HostFeed":
        """See :class:`Feed`."""
        feed = copy.copy(self)
        feed._start(self._order.continuing(origin))
        return feed

    def _load(self, epoch: int, index: int) -> HostBatches:
        begin = index * self._slab_steps
        rows = self._rows(epoch)[begin : begin + self._slab_steps]
        short = self._slab_steps - len(rows)
        rows = np.pad(rows, ((0, short), (0, 0)), constant_values=PADDING)
        over_data = sharding.split_over_data(self._mesh, axis=1)

        def send(array: np.ndarray, read: Read, dtype: Any) -> jax.Array:
            # Called for each device of this process, so that it reads only their parts.
            return jax.make_array_from_callback(
                rows.shape + array.shape[1:],
                over_data,
                lambda part: gather(array, read, rows[cast(Any, part)[:2]]).astype(
                    dtype, copy=False
                ),
            )

        first = self._order.epochs.start + epoch * self.steps_per_epoch + begin
        return HostBatches(
            images=send(*self._images, np.uint8),
            labels=send(*self._labels, np.int32),
            mask=sharding.put(rows != PADDING, over_data),
            first=sharding.put(np.int32(first), sharding.replicated(self._mesh)),
            image_shape=self._split.image_shape,
        )

    def _slab(self, epoch: int, index: int) -> HostBatches:
        following = (epoch, index + 1)
        if (index + 1) * self._slab_steps >= self.steps_per_epoch:
            # In order, every pass is the same.
            following = (epoch if self._order.seed is None else epoch + 1, 0)
        wanted = ((epoch, index), following)
        for key in wanted:
            if key not in self._slabs:
                self._slabs[key] = self._executor.submit(self._load, *key)
        self._slabs = {key: self._slabs[key] for key in wanted}
        return self._slabs[epoch, index].result()

    def chunks(self, start: int, stop: int) -> Iterator[tuple[HostBatches, int]]:
        """See :class:`Feed`."""
        while start < stop:
            epoch, offset = self._order.epochs.locate(start)
            index, within = divmod(offset, self._slab_steps)
            steps = min(
                stop - start, self._slab_steps - within, self.steps_per_epoch - offset
            )
            yield self._slab(epoch, index), steps
            start += steps


FEEDS: dict[str, type[DeviceFeed] | type[HostFeed]] = {
    "device": DeviceFeed,
    "host": HostFeed,
}
