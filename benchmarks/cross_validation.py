"""Cross-validates variations of a recipe; their members train in one program.

python -m benchmarks.cross_validation docs/cross-validation.json

Each of six members trains on five sixths of the 60,000 training images and counts its
errors on the other sixth, so every image judges a variation once. The test split is not
read. The file names the recipe and its variations; those without figures are measured.

A variation with `seeds` is reported instead: its members train on the usual split, and
read the test split once, alone and together.

`jax.vmap` makes one program of the members. On CPU, such convolutions are slow.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import lax

from benchmarks.mnist import load_mnist
from flaxmnist import config as configs
from flaxmnist.core import augment, losses, models
from flaxmnist.core.ensemble import Translated, stack
from flaxmnist.core.state import TrainState, create_state
from flaxmnist.core.steps import predict_step, train_step
from flaxmnist.data.order import Epochs, epoch_order
from flaxmnist.runtime.durable import write_file
from flaxmnist.training.durations import make_optimizer, plain_from

FOLDS = 6
EVAL_BATCH = 500


@jax.jit
def train_epoch(
    states: TrainState, images: Any, labels: Any, orders: Any
) -> TrainState:
    """Trains stacked states on the rows `orders`, `[members, steps, batch]`."""

    def step_of(state: TrainState, rows: Any) -> TrainState:
        batch = {"image": images[rows], "label": labels[rows]}
        return train_step(state, batch)[0]

    members: TrainState = lax.fori_loop(
        0,
        orders.shape[1],
        lambda step, states: jax.vmap(step_of)(states, orders[:, step]),
        states,
    )
    return members


def train(
    config: configs.Config,
    rows: Mapping[int, np.ndarray],
    images: np.ndarray,
    labels: np.ndarray,
) -> TrainState:
    """Returns the stacked states of members after the training.

    Args:
      config: of all members.
      rows: by seed, the training examples of the member.
      images: uint8 `[count, height, width, channels]`.
      labels: int32 `[count]`.
    """
    count = min(map(len, rows.values()))
    epochs = Epochs(count, config.batch_size)
    tx, _, total = make_optimizer(config, epochs)
    model = models.build(dtype=config.precision, **configs.as_dict(config.model))
    options = {
        "ema_decay": config.ema,
        "augment": augment.build(**configs.as_dict(config.augment)),
        "augment_until": plain_from(config, epochs, total),
        "loss": losses.build(
            labels=labels[next(iter(rows.values()))],
            num_classes=10,
            **configs.as_dict(config.loss),
        ),
    }
    each = [create_state(model, tx, seed, **options) for seed in rows]
    states = stack(each)
    on_device = jax.device_put((images, labels))
    per_epoch = epochs.steps_per_epoch
    for epoch in range(-(-total // per_epoch)):
        orders = [
            member[epoch_order(seed, epoch, count)][: per_epoch * config.batch_size]
            for seed, member in rows.items()
        ]
        stacked = np.stack(orders).reshape(len(rows), per_epoch, -1).astype(np.int32)
        left = total - epoch * per_epoch
        states = train_epoch(states, *on_device, stacked[:, :left])
    return states


def probabilities(states: TrainState, images: np.ndarray) -> np.ndarray:
    """Returns `[members, count, classes]` of `images`, `[members, count, …]`."""
    predict = jax.jit(
        jax.vmap(lambda state, images: predict_step(state, images)["probabilities"])
    )
    parts = [
        predict(states, images[:, first : first + EVAL_BATCH])
        for first in range(0, images.shape[1], EVAL_BATCH)
    ]
    return np.concatenate(parts, axis=1)


def errors(
    states: TrainState, images: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
    """Returns the errors of each member and, on shared images, of their mean.

    "translated" are those of the mean over shifted copies of an image.

    Args:
      states: of the members.
      images: `[members, count, …]`.
      labels: `[members, count]`, or `[1, count]` if the members share the images.
    """
    shifting = dataclasses.replace(states, model=Translated(states.model))
    found: dict[str, Any] = {}
    for suffix, chosen in (("", states), ("_translated", shifting)):
        given = probabilities(chosen, images)
        found[f"errors{suffix}"] = (given.argmax(-1) != labels).sum(1).tolist()
        if len(labels) == 1:
            wrong = given.mean(0).argmax(-1) != labels[0]
            found[f"ensemble{suffix}"] = int(wrong.sum())
    return found


def measure(config: configs.Config, seeds: Sequence[int] | None) -> dict[str, Any]:
    """Returns the errors on each fold; with `seeds`, those on validation and test."""
    mnist = load_mnist()
    num_validation = len(mnist.validation)
    images = np.concatenate([mnist.validation.images, mnist.train.images])
    labels = np.concatenate([mnist.validation.labels, mnist.train.labels])
    labels = labels.astype(np.int32)
    indices = np.arange(len(labels))
    if seeds is None:
        parts = indices.reshape(FOLDS, -1)
        rows = {fold: np.setdiff1d(indices, part) for fold, part in enumerate(parts)}
        states = train(config, rows, images, labels)
        return errors(states, images[parts], labels[parts])
    rows = dict.fromkeys(seeds, indices[num_validation:])
    states = train(config, rows, images, labels)

    def repeated(split: Any) -> tuple[np.ndarray, np.ndarray]:
        return np.stack([split.images] * len(rows)), split.labels[None]

    return {
        name: errors(states, *repeated(mnist.split(name)))
        for name in ("validation", "test")
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measures what the file lacks, and prints each variation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="the recipe and its variations, JSON")
    path = parser.parse_args(argv).file
    results = json.loads(path.read_text("utf-8"))
    recipe = configs.override(configs.load(results["config"]), results["options"])
    for variation in results["variations"]:
        if not variation.keys() & {"errors", "test"}:
            config = configs.override(recipe, variation["options"])
            began = time.perf_counter()
            variation |= measure(config, variation.get("seeds"))
            variation["seconds"] = round(time.perf_counter() - began, 1)
            device = jax.devices()[0].device_kind
            variation["measured"] = f"{device}, JAX {jax.__version__}"
            write_file(path, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        counts = variation.get("errors") or variation["test"]["errors"]
        print(f"{variation['name']}: {sum(counts)} errors, {counts}", flush=True)


if __name__ == "__main__":
    main()
