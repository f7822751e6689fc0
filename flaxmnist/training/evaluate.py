"""One exact pass over a split."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from flaxmnist.core import sharding
from flaxmnist.core.metrics import Metrics
from flaxmnist.core.state import TrainState
from flaxmnist.core.steps import Batches, eval_steps, predict_step
from flaxmnist.data.feeds import Feed

# Batches between two movements of the bar.
DISPATCH = 50


def evaluate(
    state: TrainState,
    feed: Feed,
    everywhere: NamedSharding,
    advance: Callable[[int], None] = lambda batches: None,
) -> Metrics:
    """Returns the metrics of every example of a split, each counted once.

    Args:
      state: whose parameters and model state are evaluated.
      feed: the split, in order and padded (`seed=None`).
      everywhere: the sharding of what every device holds.
      advance: told of each so many batches that are done.
    """
    metrics, total = sharding.zeros(Metrics.empty, everywhere), feed.steps_per_epoch
    for begin in range(0, total, DISPATCH):
        first = begin
        for batches, count in feed.spans(begin, min(begin + DISPATCH, total)):
            span = sharding.put_tree((np.int32(first), np.int32(count)), everywhere)
            metrics = eval_steps(state, metrics, batches, *span)
            first += count
        jax.block_until_ready(metrics)
        advance(first - begin)
    return jax.device_get(metrics)


def predict(
    state: TrainState, feed: Feed, everywhere: NamedSharding
) -> dict[str, np.ndarray]:
    """Returns what `predict_step` does for every example of a split, in its order.

    The arguments are those of :func:`evaluate`.

    Returns:
      ``classes`` and ``labels`` `[count]`, ``probabilities`` and ``logits``
      `[count, 10]`.
    """
    parts, step = [], 0
    for batches, count in feed.spans(0, feed.steps_per_epoch):
        for _ in range(count):
            at = sharding.put(np.int32(step), everywhere)
            parts.append(_predict(state, batches, at, everywhere))
            step += 1
    whole = jax.tree.map(lambda *arrays: np.concatenate(arrays), *jax.device_get(parts))
    mask = whole.pop("mask")
    return {name: array[mask] for name, array in whole.items()}


@functools.partial(jax.jit, static_argnames="everywhere")
def _predict(
    state: TrainState, batches: Batches, step: Any, everywhere: NamedSharding
) -> dict[str, Any]:
    batch = batches.at(step)
    outputs = predict_step(state, batch["image"])
    outputs |= {"labels": batch["label"], "mask": batch["mask"]}
    # Whole on every device, so that every process can read all of it.
    return jax.lax.with_sharding_constraint(outputs, everywhere)
