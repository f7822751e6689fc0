"""Runs that continue with another batch size, optimizer, loss or augmentation."""

import numpy as np
import pytest

from flaxmnist.data import DeviceFeed, HostFeed, Split, epoch_order
from flaxmnist.data.order import Epochs, Order, Origin


def reference(count, seed, parts):
    """Returns the examples of each step: `parts` are batch sizes and numbers of steps.

    An epoch ends when fewer examples are left than the present batch size.
    """
    epoch, order, batches = -1, [], []
    for size, steps in parts:
        for _ in range(steps):
            if len(order) < size:
                epoch += 1
                order = epoch_order(seed, epoch, count).tolist()
            batches.append(order[:size])
            order = order[size:]
        if len(order) < size:
            order = []
    return batches


def test_each_step_takes_the_next_examples_of_the_epoch(mesh):
    count, seed = 23, 4
    rng = np.random.default_rng(0)
    for _ in range(50):
        parts = rng.integers(1, (count, 12), (4, 2)).tolist()
        found, origin = [], Origin()
        for size, steps in parts:
            order = Order(count, size, mesh, seed, origin)
            for _ in range(steps):
                epoch, row = order.epochs.locate(len(found))
                found.append(order.epoch(epoch)[row].tolist())
            origin = order.epochs.position(len(found))
        assert found == reference(count, seed, parts)


@pytest.mark.parametrize("make_feed", [DeviceFeed, HostFeed])
def test_feeds_continue_with_another_batch_size(make_feed, mesh, monkeypatch):
    monkeypatch.setattr("flaxmnist.data.feeds.SLAB_BYTES", 8)
    count, seed = 23, 4
    split = Split(np.zeros((count, 1, 1), np.uint8), np.arange(count, dtype=np.uint8))
    parts, found, origin = [(4, 7), (6, 3), (3, 12), (4, 9)], [], Origin()
    for size, steps in parts:
        feed = make_feed(split, size, mesh, seed).continuing(origin)
        for batches, number in feed.chunks(origin.step, origin.step + steps):
            for step in range(len(found), len(found) + number):
                batch = batches.at(np.int32(step))
                assert batch["mask"].all()
                found.append(batch["label"].tolist())
        origin = Epochs(count, size, origin).position(len(found))
    assert found == reference(count, seed, parts)
