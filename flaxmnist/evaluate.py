"""One exact pass over a split."""

import jax
import numpy as np
from jax.sharding import NamedSharding

from flaxmnist import sharding
from flaxmnist.data.batches import Feed
from flaxmnist.metrics import Metrics
from flaxmnist.state import TrainState
from flaxmnist.steps import eval_steps


def evaluate(
    state: TrainState,
    feed: Feed,
    everywhere: NamedSharding,
    num_steps: int | None = None,
) -> Metrics:
    """Returns the metrics of every example of a split, each counted once.

    Everything is dispatched before anything is read back.

    Args:
      state: whose parameters and model state are evaluated.
      feed: the split, in order and padded (`seed=None`).
      everywhere: the sharding of what every device holds.
      num_steps: stop after that many batches; 0 compiles and evaluates nothing.
    """
    metrics = sharding.put_tree(Metrics.empty(), everywhere)
    stop = feed.steps_per_epoch if num_steps is None else max(num_steps, 1)
    first = 0
    for batches, span in feed.spans(0, stop):
        count = span if num_steps != 0 else 0
        bounds = (sharding.put(np.int32(n), everywhere) for n in (first, count))
        metrics = eval_steps(state, metrics, batches, *bounds)
        first += span
    return jax.device_get(metrics)
