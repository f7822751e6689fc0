"""Experiments: data, model, optimizer and mesh, built from a configuration."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from flaxmnist import data
from flaxmnist.config import Config, as_dict, flat, sources
from flaxmnist.core import augment, losses, metrics, models, sharding
from flaxmnist.core.metrics import Metrics
from flaxmnist.core.state import TrainState
from flaxmnist.core.steps import Batches, train_steps
from flaxmnist.data.feeds import FEEDS, Feed
from flaxmnist.data.order import START, Epochs, Origin
from flaxmnist.errors import UserError
from flaxmnist.rundir.changes import Change
from flaxmnist.rundir.results import Figures
from flaxmnist.runtime import processes
from flaxmnist.training import programs
from flaxmnist.training.durations import Interval, intervals, make_optimizer, plain_from
from flaxmnist.training.progress import Progress


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Everything that the evaluation of a state needs.

    Attributes:
      config: of the run.
      dataset: its data.
      eval_feeds: the splits to evaluate, in order and padded.
      replicated: sharding of arrays that every device holds completely.
      total_steps: number of steps of a complete run.
      origin: where the run began to use its batch size.
      changes: changes of options, in order.
    """

    config: Config
    dataset: data.Dataset
    eval_feeds: Mapping[str, Feed]
    replicated: NamedSharding
    total_steps: int
    origin: Origin = START
    changes: tuple[Change, ...] = ()

    @property
    def epochs(self) -> Epochs:
        """The epochs of the training, by step."""
        return Epochs(len(self.dataset.train), self.config.batch_size, self.origin)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment(Evaluation):
    """Everything that a run needs and no step changes; nothing is on disk yet.

    Attributes:
      feed: the training split, in a new order every epoch.
      model: what is trained.
      tx: the optimizer.
      schedule: the learning rate by step.
      every: the interval between two events, by event.
      layout: where the arrays of the state are.
      state_options: further arguments of `create_state`.
    """

    feed: Feed
    model: nn.Module
    tx: optax.GradientTransformation
    schedule: optax.Schedule
    every: dict[str, Interval]
    layout: sharding.Layout
    state_options: dict[str, Any]

    @classmethod
    def build(
        cls,
        config: Config,
        dataset: data.Dataset | None = None,
        origin: Origin = START,
    ) -> "Experiment":
        """Builds the experiment that `config` describes; writes nothing.

        Args:
          config: of the run.
          dataset: the data; those that `config.data` names if None.
          origin: where the run began to use its batch size.

        Raises:
          UserError: the options, the devices or the data do not fit together.
        """
        layout = make_layout(config)
        _check_batch_split(config, layout.mesh.shape["data"])
        dataset = load_dataset(config, dataset)
        epochs = Epochs(len(dataset.train), config.batch_size, origin)
        tx, schedule, total_steps = make_optimizer(config, epochs)
        feed, eval_feeds = _make_feeds(config, dataset, layout.mesh)
        return cls(
            config=config,
            dataset=dataset,
            origin=origin,
            feed=feed.continuing(origin),
            eval_feeds=eval_feeds,
            model=models.build(
                image_shape=dataset.image_shape,
                num_classes=dataset.num_classes,
                dtype=config.precision,
                **as_dict(config.model),
            ),
            tx=tx,
            schedule=jax.jit(schedule),
            total_steps=total_steps,
            every=intervals(config, epochs),
            replicated=sharding.replicated(layout.mesh),
            layout=layout,
            state_options={
                "ema_decay": config.ema,
                "grad_accumulation": config.grad_accumulation,
                "image_shape": dataset.image_shape,
                "augment": augment.build(**as_dict(config.augment)),
                "augment_until": plain_from(config, epochs, total_steps),
                "metrics": metrics.build(config.metrics),
                "loss": losses.build(
                    labels=dataset.train.labels,
                    num_classes=dataset.num_classes,
                    **as_dict(config.loss),
                ),
            },
        )

    def continuing(self, origin: Origin, changes: tuple[Change, ...]) -> "Experiment":
        """Returns the experiment of a run that began to use its batch size at `origin`.

        Raises:
          UserError: there would be too many steps, or fewer than the warm-up has.
        """
        moved = dataclasses.replace(self, origin=origin, changes=changes)
        if origin == self.origin:
            return moved
        tx, schedule, total_steps = make_optimizer(self.config, moved.epochs)
        return dataclasses.replace(
            moved,
            feed=self.feed.continuing(origin),
            tx=tx,
            schedule=jax.jit(schedule),
            total_steps=total_steps,
            every=intervals(self.config, moved.epochs),
            state_options=self.state_options
            | {"augment_until": plain_from(self.config, moved.epochs, total_steps)},
        )

    def advance(self, progress: Progress, max_steps: int) -> Progress:
        """Trains in one dispatch up to the next event, at most `max_steps` steps.

        The arrays of `progress` are donated.
        """
        stop = self.next_stop(progress.step, max_steps)
        state, metrics = progress.state, progress.metrics_since_log
        # Without compilation, each operation transfers its constants.
        eager = jax.config.jax_disable_jit  # type: ignore[attr-defined]
        with jax.transfer_guard("allow" if eager else "disallow"):
            for batches, count in self.feed.chunks(progress.step, stop):
                state, metrics = self.train_steps(state, metrics, batches, count)
            figures = Figures.of(jax.device_get(metrics).compute())
        return dataclasses.replace(
            progress,
            step=stop,
            state=state,
            metrics_since_log=metrics,
            figures=figures,
            validation=None,
            records=(),
        )

    def train_steps(
        self, state: TrainState, metrics: Metrics, batches: Batches, count: int
    ) -> tuple[TrainState, Metrics]:
        """Makes `count` updates; see :func:`flaxmnist.core.steps.train_steps`."""
        args = state, metrics, batches, self.put(count)
        trained: tuple[TrainState, Metrics] = programs.call(
            train_steps, (state, metrics), *args
        )
        return trained

    def is_finished(self, progress: Progress) -> bool:
        """Returns whether all steps are trained or `config.patience` is exhausted."""
        patience = self.config.patience
        out_of_patience = patience is not None and progress.best.waited >= patience
        return progress.step >= self.total_steps or out_of_patience

    def due(self, event: str, step: int) -> bool:
        """Returns whether `event`, one of `every`, falls on `step`."""
        every = self.every.get(event)
        return every is not None and (
            every.following(step - 1) == step or step == self.total_steps
        )

    def next_stop(self, step: int, max_steps: int) -> int:
        """Returns the step of the next event, at most `max_steps` after `step`."""
        events = [every.following(step) for every in self.every.values()]
        return min(step + max_steps, self.total_steps, *events)

    def put(self, number: int) -> jax.Array:
        """Returns a number as an int32 on every device."""
        return sharding.put(np.int32(number), self.replicated)

    def no_metrics(self) -> Metrics:
        """Returns the metrics of no example, on every device."""
        return sharding.zeros(
            lambda: Metrics.empty(
                self.dataset.num_classes, self.state_options["metrics"]
            ),
            self.replicated,
        )


def _check_batch_split(config: Config, data_parts: int) -> None:
    """Raises UserError unless every device gets equally many examples of a batch."""
    parts = data_parts * config.grad_accumulation
    if config.batch_size % parts:
        below, above = (config.batch_size // parts + n for n in (0, 1))
        sizes = " or ".join(str(n * parts) for n in (below, above) if n)
        raise UserError(
            f"batch_size={config.batch_size} cannot be split over {data_parts} devices "
            f"(mesh.data) times {config.grad_accumulation} (grad_accumulation): "
            f"expected a multiple of {parts}, such as {sizes}"
        )


def load_dataset(config: Config, dataset: data.Dataset | None) -> data.Dataset:
    """Returns the data that `config` names unless they are given.

    Raises:
      UserError: they cannot be used, or have fewer training examples than a batch.
    """
    if dataset is None:
        options = as_dict(config.data)
        del options["placement"]
        dataset = data.load(**options)
    check_dataset(config, dataset)
    if config.batch_size > len(dataset.train):
        raise UserError(
            f"batch_size={config.batch_size}: expected at most {len(dataset.train):,}, "
            f"the training examples of {dataset.name} ({dataset.source})"
        )
    return dataset


def _make_feeds(
    config: Config, dataset: data.Dataset, mesh: Mesh
) -> tuple[Feed, Mapping[str, Feed]]:
    """Returns the feed of training, and those of evaluation by split."""
    # This reads files on disk in order; feeds read them in random order.
    _ = dataset.fingerprints
    splits = {name: dataset.split(name) for name in data.SPLITS}
    eval_batch = eval_batch_size(config, dataset, mesh)
    eval_feeds = FEEDS[config.data.placement].in_order(splits, eval_batch, mesh)
    return eval_feeds["train"].shuffled(config.batch_size, config.seed), eval_feeds


def make_layout(config: Config) -> sharding.Layout:
    """Returns the layout of the state over the mesh of `config`.

    Raises:
      UserError: the mesh needs other devices than there are.
    """
    options = as_dict(config.mesh)
    fsdp = options.pop("fsdp")
    return sharding.Layout(sharding.make_mesh(**options), fsdp)


def check_dataset(config: Config, dataset: data.Dataset) -> None:
    """Checks that no split is empty, and that all processes have the same data.

    Raises:
      UserError: a split is empty, or another process has other options or data.
    """
    if jax.process_count() > 1:
        facts = flat(config)
        # Each process may have its own, after which data may be named.
        del facts["data.dir"]
        for split, count in dataset.counts.items():
            facts[f"the {split} data"] = (
                f"{dataset.source}, {count:,} examples, CRC-32 "
                f"{dataset.fingerprints[split]}"
            )
        facts["the class names"] = ", ".join(dataset.class_names)
        for spec, sha256 in sources(config).items():
            facts[f"the source of {spec}"] = sha256
        if difference := processes.find_difference(facts):
            raise UserError(
                f"{difference}; start every process with the same options and data"
            )
    for split, count in dataset.counts.items():
        if count == 0:
            raise UserError(f"the {split} split of {dataset.name} is empty")


def eval_batch_size(config: Config, dataset: data.Dataset, mesh: Mesh) -> int:
    """Returns the size of an evaluation batch, a multiple of the mesh's data axis."""
    largest, parts = max(dataset.counts.values()), mesh.shape["data"]
    return -(-min(config.eval_batch_size, largest) // parts) * parts
