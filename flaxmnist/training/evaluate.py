"""Exact passes over a split: every example counts once."""

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
from flaxmnist.training import programs

# What `predict_step` returns.
OUTPUTS = {"classes": 0, "probabilities": 0, "logits": 0}
# Batches between two updates of the progress bar.
DISPATCH = 50


def evaluate(
    state: TrainState,
    feed: Feed,
    replicated: NamedSharding,
    advance: Callable[[int], None] = lambda batches: None,
) -> Metrics:
    """Returns the metrics of every example of a split, each counted once.

    Args:
      state: provides the parameters and the model state.
      feed: the split, in order and padded (`seed=None`).
      replicated: sharding of arrays that every device holds completely.
      advance: called with the number of batches since its last call.
    """
    metrics = sharding.zeros(
        lambda: Metrics.empty(state.num_classes, state.metrics), replicated
    )
    total = feed.steps_per_epoch
    for begin in range(0, total, DISPATCH):
        first = begin
        for batches, count in feed.chunks(begin, min(begin + DISPATCH, total)):
            span = sharding.put_tree((np.int32(first), np.int32(count)), replicated)
            metrics = programs.call(eval_steps, metrics, state, metrics, batches, *span)
            first += count
        jax.block_until_ready(metrics)
        advance(first - begin)
    return jax.device_get(metrics)


def predict(
    state: TrainState, feed: Feed, replicated: NamedSharding
) -> dict[str, np.ndarray]:
    """Returns the outputs of `predict_step` for a split, in its order.

    The arguments are those of :func:`evaluate`.

    Returns:
      ``classes`` and ``labels`` `[count]`, ``probabilities`` and ``logits``
      `[count, classes]`.
    """
    parts, step = [], 0
    like = OUTPUTS | {"labels": 0, "mask": 0}
    for batches, count in feed.chunks(0, feed.steps_per_epoch):
        for _ in range(count):
            at = sharding.put(np.int32(step), replicated)
            parts.append(
                programs.call(_predictor(replicated), like, state, batches, at)
            )
            step += 1
    whole = jax.tree.map(lambda *arrays: np.concatenate(arrays), *jax.device_get(parts))
    mask = whole.pop("mask")
    return {name: array[mask] for name, array in whole.items()}


@functools.lru_cache(maxsize=8)
def _predictor(replicated: NamedSharding) -> Callable[..., dict[str, Any]]:
    # Every process can read all of the outputs.
    return jax.jit(_predict, out_shardings=replicated)


def _predict(state: TrainState, batches: Batches, step: Any) -> dict[str, Any]:
    batch = batches.at(step)
    outputs = predict_step(state, batch["image"])
    return outputs | {"labels": batch["label"], "mask": batch["mask"]}
