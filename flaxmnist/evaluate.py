"""One exact pass over a split."""

import jax
import numpy as np
from jax.sharding import NamedSharding

from flaxmnist import sharding
from flaxmnist.data.batches import Feed
from flaxmnist.metrics import Metrics
from flaxmnist.state import TrainState
from flaxmnist.steps import eval_steps


def evaluate(state: TrainState, feed: Feed, everywhere: NamedSharding) -> Metrics:
    """Returns the metrics of every example of a split, each counted once.

    Everything is dispatched before anything is read back.

    Args:
      state: whose parameters and model state are evaluated.
      feed: the split, in order and padded (`seed=None`).
      everywhere: the sharding of what every device holds.
    """
    metrics, first = sharding.put_tree(Metrics.empty(), everywhere), 0
    for batches, count in feed.spans(0, feed.steps_per_epoch):
        span = sharding.put_tree((np.int32(first), np.int32(count)), everywhere)
        metrics = eval_steps(state, metrics, batches, *span)
        first += count
    return jax.device_get(metrics)
