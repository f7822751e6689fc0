"""What a configuration describes, built: data, model, optimizer, mesh."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from flaxmnist import config as configs
from flaxmnist import data, models, optim, sharding
from flaxmnist.checks import UserError, to_steps
from flaxmnist.data.batches import FEEDS, Feed
from flaxmnist.metrics import Metrics
from flaxmnist.state import abstract_state

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of a run; nothing is on disk yet."""

    config: ConfigDict
    dataset: data.Dataset
    feed: Feed
    eval_feeds: dict[str, Feed]
    model: nn.Module
    tx: optax.GradientTransformation
    schedule: optax.Schedule
    total_steps: int
    everywhere: NamedSharding

    def put(self, number: int) -> jax.Array:
        """Returns a number as every device's int32."""
        return sharding.put(np.int32(number), self.everywhere)

    def empty_metrics(self) -> Metrics:
        """Returns metrics of no example, on every device."""
        return jax.tree.map(
            lambda leaf: sharding.put(np.asarray(leaf), self.everywhere),
            Metrics.empty(),
        )

    def abstract(self) -> dict[str, Any]:
        """Returns the shapes of what a checkpoint holds."""
        state = abstract_state(self.model, self.tx, sharding=self.everywhere)
        window = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=self.everywhere
            ),
            jax.eval_shape(Metrics.empty),
        )
        return {"state": state, "window": window}


def build(config: ConfigDict) -> Run:
    """Builds what `config` describes.

    Raises:
      UserError: something in it is not possible; nothing was written.
    """
    config = configs.resolve(config)
    model = models.build(**config.model)
    mesh = sharding.make_mesh(**config.mesh)
    devices = mesh.size
    if config.batch_size % devices:
        fitting = [
            n * devices
            for n in (config.batch_size // devices, config.batch_size // devices + 1)
            if n
        ]
        raise UserError(
            f"batch_size={config.batch_size} cannot be split over {devices} devices: "
            f"expected a multiple, such as {' or '.join(map(str, fitting))}"
        )
    dataset = data.load(config.data.name, config.data.source, config.data.dir)
    for split, count in dataset.counts.items():
        if count == 0:
            raise UserError(f"the {split} split of {dataset.name} is empty")
    if config.batch_size > len(dataset.train):
        raise UserError(
            f"batch_size={config.batch_size}: expected at most {len(dataset.train):,}, "
            f"the training examples of {dataset.name} ({dataset.source})"
        )
    steps_per_epoch = len(dataset.train) // config.batch_size
    total_steps = config.num_steps or to_steps(
        f"{config.num_epochs} epochs", steps_per_epoch
    )
    optimizer = config.optimizer.to_dict()
    warmup = optimizer.pop("warmup")
    tx, schedule = optim.build(
        **optimizer,
        warmup_steps=to_steps(warmup, steps_per_epoch) if warmup else 0,
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
    )
    make_feed = FEEDS[config.data.placement]
    eval_batch = -(-config.eval_batch_size // devices) * devices
    return Run(
        config=config,
        dataset=dataset,
        feed=make_feed(dataset.train, config.batch_size, mesh, config.seed),
        eval_feeds={
            split: make_feed(getattr(dataset, split), eval_batch, mesh)
            for split in SPLITS
        },
        model=model,
        tx=tx,
        schedule=jax.jit(schedule),
        total_steps=total_steps,
        everywhere=sharding.replicated(mesh),
    )
